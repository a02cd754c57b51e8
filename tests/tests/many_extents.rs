//! A file of very many extents: what an operation costs the server grows as the depth of a tree, not as the file.
//!
//! The cost is processor time of the server, so that a busy machine does not change it. `PEERFS_EXTENTS` sets the number
//! of extents of the large file (a power of two; 1048576 for the full size).

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::path::Path;
use std::time::Instant;

use peerfs_client::{File, ImporterSpec, MapFlags, Session};
use peerfs_tests::{Random, ScratchMount, seed};

const BLOCK: u64 = 4096;
const SMALL: u64 = 1 << 10;
const ROUNDS: u64 = 200;
/// A large file may cost this many times a small one: a linear operation costs at least 32 times as much.
const FACTOR: u64 = 4;
/// Differences of this many nanoseconds say nothing.
const NOISE_NS: u64 = 100_000;

type Operation = fn(&Subject, u64);

const OPERATIONS: [(&str, Operation); 8] = [
    ("read", |subject, at| {
        let mut block = [0; BLOCK as usize];
        assert_eq!(subject.file.read_at(at, &mut block).expect("read"), block.len());
    }),
    ("query", |subject, at| drop(subject.file.query(at..at + BLOCK, MapFlags::empty(), "cpu").expect("query"))),
    ("map for reading", |subject, at| {
        let mapping = subject.session.map(&subject.file, at..at + BLOCK, MapFlags::empty()).expect("map");
        mapping.unmap().expect("unmap");
    }),
    ("write to a shared block", |subject, at| subject.file.write_at(at, &[7; BLOCK as usize]).expect("write")),
    ("write to a part of a block", |subject, at| subject.file.write_at(at + 100, &[8; 100]).expect("write")),
    ("map for writing", |subject, at| {
        let mapping = subject.session.map(&subject.file, at..at + BLOCK, MapFlags::WRITE).expect("map");
        assert!(mapping.segments().iter().all(|segment| segment.reason.is_none()), "{:?}", mapping.segments());
        mapping.unmap().expect("unmap");
    }),
    ("clone a block", |subject, at| {
        subject.file.reflink_from(&subject.file, 0, at, BLOCK).expect("clone");
    }),
    ("truncate by a block and a bit", |subject, _| {
        let size = fs::metadata(&subject.path).expect("stat").len();
        let file = OpenOptions::new().write(true).open(&subject.path).expect("open");
        file.set_len((size - 2 * BLOCK).next_multiple_of(BLOCK) + 100).expect("truncate");
    }),
];

struct Subject {
    file: File,
    path: std::path::PathBuf,
    session: Session,
    blocks: u64,
    seed: u64,
}

impl Subject {
    /// Each block is an extent of its own, all of them one block of the device.
    fn create(mount: &ScratchMount, name: &str, extents: u64, seed: u64) -> Subject {
        let path = mount.join(name);
        let file = open(&path);
        file.write_at(0, &[1; BLOCK as usize]).expect("room");
        let mut blocks = 1;
        while blocks < extents {
            let more = blocks.min(extents - blocks);
            file.reflink_from(&file, 0, blocks * BLOCK, more * BLOCK).expect("clone");
            blocks += more;
        }
        let session = Session::open(mount.path(), ImporterSpec::cpu()).expect("a session");
        Subject { file, path, session, blocks, seed }
    }

    /// Nanoseconds of the server's processor time for one round of an operation.
    fn cost(&self, mount: &ScratchMount, operation: Operation) -> u64 {
        // Different blocks, the same ones for every operation; the last ones are left to truncate.
        let mut random = Random::new(self.seed);
        let places: Vec<u64> = (0..ROUNDS).map(|_| (1 + random.below(self.blocks - 3 * ROUNDS)) * BLOCK).collect();
        let server = mount.server_pid().expect("a server");
        loop {
            let before = processor_time(server);
            places.iter().for_each(|at| operation(self, *at));
            let after = processor_time(server);
            // A thread that ended took its share with it: once more.
            if before.keys().all(|thread| after.contains_key(thread)) {
                let spent: u64 = after.iter().map(|(thread, time)| time - before.get(thread).unwrap_or(&0)).sum();
                return spent / ROUNDS;
            }
        }
    }
}

fn open(path: &Path) -> File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true);
    File::open_with(path, &options).expect("open")
}

/// Of each of its threads, nanoseconds.
fn processor_time(process: i32) -> HashMap<OsString, u64> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).expect("it runs");
    let of_thread = |entry: fs::DirEntry| {
        let text = fs::read_to_string(entry.path().join("schedstat")).ok()?;
        Some((entry.file_name(), text.split_whitespace().next()?.parse().ok()?))
    };
    threads.filter_map(|entry| of_thread(entry.ok()?)).collect()
}

#[test]
fn operations_on_a_small_part_do_not_cost_the_whole() {
    let extents: u64 = std::env::var("PEERFS_EXTENTS").ok().and_then(|text| text.parse().ok()).unwrap_or(SMALL << 6);
    assert!(extents >= SMALL << 5, "too few extents to tell");
    let options = ["--cmb", "16M", "-o", "commit=3600"];
    let mut mount = ScratchMount::new("1G", &options).expect("a mount");
    let seed = seed(1);
    let small = Subject::create(&mount, "small", SMALL, seed);
    let begun = Instant::now();
    let large = Subject::create(&mount, "large", extents, seed);
    println!("{extents} extents made in {:?}", begun.elapsed());
    fs::File::open(mount.path()).and_then(|directory| directory.sync_all()).expect("sync");
    let mut linear = Vec::new();
    for (what, operation) in OPERATIONS {
        // The better of two: the server has threads that do something else now and then.
        let cost = |subject: &Subject| subject.cost(&mount, operation).min(subject.cost(&mount, operation));
        let (few, many) = (cost(&small), cost(&large));
        println!("{what}: {few} ns of {SMALL} extents, {many} ns of {extents}");
        if many > FACTOR * few + NOISE_NS {
            linear.push(what);
        }
    }
    assert!(linear.is_empty(), "these cost as much as the file is large: {linear:?}");
    drop((small, large));

    mount.umount().expect("umount");
    mount.fsck().expect("clean");
    mount.mount(&options).expect("mount");
    let path = mount.join("large");
    for what in ["first", "second"] {
        let begun = Instant::now();
        let mut block = [0; BLOCK as usize];
        open(&path).read_at(0, &mut block).expect("read");
        println!("{what} read after a mount: {:?}", begun.elapsed());
    }
    let begun = Instant::now();
    OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(BLOCK)).expect("truncate");
    println!("truncated to one block in {:?}", begun.elapsed());
    assert_eq!(fs::read(&path).expect("read"), [1; BLOCK as usize]);
    fs::remove_file(&path).expect("unlink");
    mount.umount().expect("umount");
    mount.fsck().expect("clean");
}
