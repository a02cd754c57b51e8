//! Several threads at once.

use super::*;
use crate::store::testdev::Rng;

const MIB: u64 = 1 << 20;

#[test]
fn threads_share_a_directory_and_keep_their_files() {
    let fs = Mounted::with(
        Mounted::new(128 * MIB).remount_disk(),
        MountOptions { commit_interval: Duration::from_millis(5), ..MountOptions::default() },
    );
    let shared = fs.mkdir(ROOT_INO, "shared");
    let other = fs.mkdir(ROOT_INO, "other");
    std::thread::scope(|scope| {
        for worker in 0..6u64 {
            let fs = &fs;
            scope.spawn(move || work(fs, worker, [shared, other]));
        }
    });
    assert_eq!(fs.names(shared).len() + fs.names(other).len(), 6);
    fs.remount();
}

impl Mounted {
    fn remount_disk(self) -> Arc<TestDevice> {
        self.core.close().expect("close");
        self.disk
    }
}

/// Each worker owns one file; it and its name move about, and junk comes and goes.
fn work(fs: &Mounted, worker: u64, directories: [Ino; 2]) {
    let mut rng = Rng::new(worker);
    let mut at = 0;
    let name = format!("file{worker}");
    let (ino, file) = fs.create(directories[at], &name);
    let mut model = Vec::new();
    for step in 0..200 {
        match rng.below(8) {
            0 => {
                let to = 1 - at;
                fs.core
                    .rename(ALICE, directories[at], name.as_bytes(), directories[to], name.as_bytes(), RenameMode::NoReplace)
                    .expect("rename");
                at = to;
            }
            1 => {
                let size = rng.below(100_000);
                fs.truncate(ino, size);
                model.resize(size as usize, 0);
            }
            2 => fs.core.fsync(file, step % 2 == 0).expect("fsync"),
            3 => junk(fs, directories[at], &format!("junk{worker}")),
            4 => drop(fs.names(directories[at])),
            _ => {
                let offset = rng.below(100_000) as usize;
                let data = vec![worker as u8 + 1; 1 + rng.below(20_000) as usize];
                fs.write(file, offset as u64, &data);
                if model.len() < offset + data.len() {
                    model.resize(offset + data.len(), 0);
                }
                model[offset..offset + data.len()].copy_from_slice(&data);
            }
        }
        assert!(fs.read(file, 0, 1 << 20) == model, "worker {worker} step {step}");
    }
    fs.core.release(file);
    fs.core.forget(ino, 1);
}

fn junk(fs: &Mounted, parent: Ino, name: &str) {
    let (ino, file) = fs.create(parent, name);
    fs.write(file, 0, &[0xcc; 50_000]);
    fs.core.unlink(ALICE, parent, name.as_bytes()).expect("unlink");
    fs.core.forget(ino, 1);
    fs.core.release(file);
}

#[test]
fn aligned_overwrites_and_partial_ones_do_not_lose_each_other() {
    let fs = Mounted::new(32 * MIB);
    let (_, file) = fs.create(ROOT_INO, "f");
    fs.write(file, 0, &[0; 65_536]);
    std::thread::scope(|scope| {
        for worker in 0..4usize {
            let fs = &fs;
            scope.spawn(move || {
                for round in 1..=50u8 {
                    // Each writes its own 1024 bytes of every block.
                    for block in 0..16 {
                        fs.write(file, block * 4096 + worker as u64 * 1024, &[round; 1024]);
                    }
                }
            });
        }
    });
    assert!(fs.read(file, 0, 65_536).iter().all(|byte| *byte == 50));
    fs.core.release(file);
    fs.remount();
}

#[test]
fn directories_moved_into_each_other_neither_hang_nor_make_a_cycle() {
    let fs = Mounted::new(32 * MIB);
    let inos: Vec<Ino> = (0..4).map(|n| fs.mkdir(ROOT_INO, &format!("d{n}"))).collect();
    let inos = &inos;
    std::thread::scope(|scope| {
        for worker in 0..4u64 {
            let fs = &fs;
            scope.spawn(move || {
                let mut rng = Rng::new(worker + 100);
                for _ in 0..500 {
                    let moved = rng.below(4) as usize;
                    let name = format!("d{moved}");
                    let pick = |index: u64| match index {
                        4 => ROOT_INO,
                        index => inos[index as usize],
                    };
                    let (from, to) = (pick(rng.below(5)), pick(rng.below(5)));
                    let _ = fs.core.rename(ALICE, from, name.as_bytes(), to, name.as_bytes(), RenameMode::NoReplace);
                    let _ = fs.core.rmdir(ALICE, from, b"empty");
                    if let Ok(attr) = fs.core.mkdir(ALICE, to, b"empty", 0o755) {
                        fs.core.forget(attr.ino, 1);
                    }
                }
            });
        }
    });
    fs.remount();
}
