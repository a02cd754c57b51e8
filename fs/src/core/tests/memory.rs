//! What stays in memory of files that nobody uses.

use super::*;

const KEPT: usize = 100;
const FILES: u64 = 1000;

fn mounted() -> Mounted {
    let disk = Arc::new(TestDevice::new(256 << 20));
    Volume::format(disk.clone(), &FormatOptions::default()).expect("mkfs");
    let options = MountOptions { commit_interval: Duration::from_secs(3600), inodes_kept: KEPT, ..MountOptions::default() };
    Mounted::with(disk, options)
}

/// What the commit thread does from time to time.
fn sweep(fs: &Mounted) {
    fs.core.sync().expect("sync");
    fs.core.cache.sweep(fs.core.committed.load(std::sync::atomic::Ordering::Acquire));
}

/// Files that the kernel goes on knowing, none of them open.
fn crowd(fs: &Mounted) -> Vec<Ino> {
    let make = |number| {
        let (ino, handle) = fs.create(ROOT_INO, &format!("f{number}"));
        fs.write(handle, 0, &[1; 5000]);
        fs.core.release(handle);
        ino
    };
    (0..FILES).map(make).collect()
}

#[test]
fn of_files_that_the_kernel_only_knows_few_stay() {
    let fs = mounted();
    let files = crowd(&fs);
    sweep(&fs);
    // The commit thread may have been asked to sweep at the same time.
    assert!((KEPT / 2..=KEPT + 1).contains(&fs.core.cache.loaded()), "{} in memory", fs.core.cache.loaded());
    for ino in &files {
        assert_eq!(fs.core.getattr(*ino).expect("known").size, 5000);
    }
    sweep(&fs);
    assert!(fs.core.cache.loaded() <= KEPT + 1, "{} in memory", fs.core.cache.loaded());
    for ino in &files {
        fs.core.forget(*ino, 1);
    }
    sweep(&fs);
    assert!(fs.core.cache.numbers().iter().all(|ino| *ino == ROOT_INO), "nothing is known any more");
    fs.remount();
}

#[test]
fn those_in_use_stay_and_so_do_their_changes() {
    let fs = mounted();
    let files = crowd(&fs);
    let handles: Vec<Handle> = files.iter().map(|ino| fs.core.open(ALICE, *ino, READ_WRITE).expect("open").handle).collect();
    sweep(&fs);
    assert!(fs.core.cache.loaded() as u64 >= FILES);
    assert!(!fs.core.cache.has_many(), "a sweep that found nothing to do is not asked for again");
    fs.write(handles[0], 5000, &[2; 5000]);
    for handle in handles {
        fs.core.release(handle);
    }
    fs.core.cache.sweep(fs.core.committed.load(std::sync::atomic::Ordering::Acquire));
    assert!(fs.core.cache.loaded() <= KEPT + 1);
    assert!(fs.core.cache.peek(files[0]).is_some(), "an fsync would not find what to commit");
    sweep(&fs);
    assert_eq!(fs.core.getattr(files[0]).expect("known").size, 10_000);
    fs.remount();
}

#[test]
fn a_file_is_freed_after_the_last_of_the_lookups_that_were_remembered() {
    let fs = mounted();
    let free = || fs.core.statfs().expect("statfs").free;
    sweep(&fs);
    let files = crowd(&fs);
    sweep(&fs);
    let ino = files[0];
    assert!(fs.core.cache.peek(ino).is_none(), "swept");
    for _ in 0..2 {
        fs.core.lookup(ROOT_INO, b"f0").expect("there");
    }
    fs.core.forget(ino, 1);
    fs.core.unlink(ALICE, ROOT_INO, b"f0").expect("unlink");
    sweep(&fs);
    let before = free();
    fs.core.forget(ino, 1);
    assert_eq!(fs.core.getattr(ino).expect("one look-up is left").nlink, 0);
    fs.core.forget(ino, 1);
    assert_eq!(code(fs.core.getattr(ino)), libc::ENOENT);
    sweep(&fs);
    assert_eq!(free(), before + 2);
    fs.remount();
}

#[test]
fn of_what_was_made_and_cannot_be_durable_the_kernel_knows_nothing() {
    let disk = Arc::new(TestDevice::new(32 << 20));
    Volume::format(disk.clone(), &FormatOptions::default()).expect("mkfs");
    let synchronous = crate::core::Synchronous::Names;
    let options = MountOptions { commit_interval: Duration::from_secs(3600), synchronous, ..MountOptions::default() };
    let fs = Mounted::with(disk.clone(), options);
    fs.create(ROOT_INO, "durable");
    disk.fail(disk.steps(), u64::MAX);
    assert_eq!(code(fs.core.create(ALICE, ROOT_INO, b"file", 0o644, true, READ_WRITE)), libc::EIO);
    let unused = fs.core.cache.numbers().into_iter().filter_map(|ino| fs.core.cache.peek(ino)).filter(|inode| inode.is_unused());
    assert_eq!(unused.filter(|inode| inode.is_regular()).count(), 1);
}
