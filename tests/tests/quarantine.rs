//! Pins on a real mount against everything that takes blocks off a file: what the pin reaches is given to nobody
//! until it ends, and a clone that shares it keeps its own bytes.

use std::fs::{self, File, OpenOptions};
use std::path::Path;
use std::time::{Duration, Instant};

use peerfs_client::{ImporterSpec, MapFlags, Session};
use peerfs_sys::{FileView, Sharing};
use peerfs_tests::ScratchMount;

const MIB: usize = 1 << 20;
const BLOCK: u64 = 4096;
/// Less than a user may pin.
const PINNED: usize = MIB / 2;

fn mounts() -> [ScratchMount; 2] {
    let image = ScratchMount::new("24M", &["--cmb", "8M"]).expect("a mount");
    [image, ScratchMount::in_memory("24M", &[]).expect("a mount")]
}

fn open(path: &Path) -> peerfs_client::File {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true);
    peerfs_client::File::open_with(path, &options).expect("open")
}

/// A new file of blocks that are all different.
fn create(path: &Path, length: usize) -> (peerfs_client::File, Vec<u8>) {
    let content: Vec<u8> = (0..length).map(|at| (at / 4096 * 7 + at % 251 + 1) as u8).collect();
    let file = open(path);
    file.write_at(0, &content).expect("room");
    (file, content)
}

fn read(path: &Path) -> Vec<u8> {
    let file = open(path);
    let mut content = vec![0; file.size().expect("size") as usize];
    let length = file.read_at(0, &mut content).expect("read");
    assert_eq!(length, content.len());
    content
}

/// Memory of a pin that nothing but this keeps alive.
struct Held(FileView);

impl Held {
    fn new(mount: &ScratchMount, file: &peerfs_client::File) -> Held {
        let session = Session::open(mount.path(), ImporterSpec::cpu()).expect("a session");
        let mapping = session.map(file, .., MapFlags::PIN).expect("an answer");
        let pins = mapping.pins();
        let [pin] = &pins[..] else { panic!("one pin: {:?}", mapping.segments()) };
        Held(FileView::map(pin.fd, pin.length as usize, Sharing::Shared, false).expect("mmap"))
    }

    fn read(&self, length: usize) -> Vec<u8> {
        let mut content = vec![0; length];
        self.0.read(0, &mut content).expect("the pin lives");
        content
    }
}

fn volume(mount: &ScratchMount, field: &str) -> u64 {
    mount.info().expect("info")["volume"][field].as_u64().expect("a number")
}

fn wait_until(what: &str, holds: impl Fn() -> bool) {
    let limit = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < limit, "waited in vain: {what}");
        std::thread::yield_now();
    }
}

/// Takes all space there is, for one byte value.
fn fill(path: &Path) -> u64 {
    let file = open(path);
    let mut size = 0;
    for step in [MIB, BLOCK as usize] {
        while file.write_at(size, &vec![0x55; step]).is_ok() {
            size += step as u64;
        }
    }
    size
}

fn empty_quarantine(mount: &ScratchMount) {
    wait_until("the quarantine ends with the pin", || volume(mount, "quarantined_bytes") == 0);
}

type GiveUp = fn(&ScratchMount, &Path);

#[test]
fn what_a_pin_reaches_is_given_to_nobody() {
    let ways: [(&str, GiveUp); 4] = [
        ("truncate", |_, path| OpenOptions::new().write(true).open(path).expect("open").set_len(0).expect("truncate")),
        ("unlink", |_, path| fs::remove_file(path).expect("unlink")),
        ("replace", |mount, path| {
            fs::write(mount.join("new"), b"new").expect("room");
            fs::rename(mount.join("new"), path).expect("rename");
        }),
        ("punch", |_, path| {
            let file = OpenOptions::new().write(true).open(path).expect("open");
            let punch = nix::fcntl::FallocateFlags::FALLOC_FL_PUNCH_HOLE | nix::fcntl::FallocateFlags::FALLOC_FL_KEEP_SIZE;
            nix::fcntl::fallocate(&file, punch, 0, PINNED as i64).expect("punch");
        }),
    ];
    for mut mount in mounts() {
        for (what, give_up) in ways {
            let path = mount.join("pinned");
            let (file, content) = create(&path, PINNED);
            let pin = Held::new(&mount, &file);
            drop(file);
            give_up(&mount, &path);
            wait_until(what, || volume(&mount, "quarantined_bytes") == PINNED as u64);
            let filler = mount.join("filler");
            let size = fill(&filler);
            assert!(size > 8 * MIB as u64, "{what}: {size}");
            assert!(pin.read(PINNED) == content, "{what}: the pin's bytes changed");
            drop(pin);
            empty_quarantine(&mount);
            let more = fill(&mount.join("more"));
            assert!(more >= PINNED as u64, "{what}: the pin's end gave {more} bytes back");
            assert!(read(&filler).iter().all(|byte| *byte == 0x55), "{what}");
            fs::remove_file(&filler).and_then(|()| fs::remove_file(mount.join("more"))).expect("unlink");
            let _ = fs::remove_file(&path);
            File::open(mount.path()).and_then(|directory| directory.sync_all()).expect("sync");
        }
        mount.umount().expect("umount");
        if mount.image().exists() {
            mount.fsck().expect("clean");
        }
    }
}

#[test]
fn a_killed_server_leaves_no_quarantine() {
    for durable in [true, false] {
        let mut mount = ScratchMount::new("24M", &["--cmb", "8M"]).expect("a mount");
        let path = mount.join("pinned");
        let (file, content) = create(&path, PINNED);
        File::open(&path).and_then(|file| file.sync_all()).expect("fsync");
        let free = volume(&mount, "free_bytes");
        let pin = Held::new(&mount, &file);
        OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(BLOCK)).expect("truncate");
        wait_until("truncate", || volume(&mount, "quarantined_bytes") == PINNED as u64 - BLOCK);
        if durable {
            File::open(&path).and_then(|file| file.sync_all()).expect("fsync");
        }
        drop(file);
        mount.crash().expect("crash");
        mount.fsck().expect("clean");
        mount.mount(&["--cmb", "8M"]).expect("mount");
        assert!(pin.0.read(0, &mut [0; 1]).is_err(), "nobody keeps the pin's blocks any more: neither may its holder");
        assert_eq!(volume(&mount, "quarantined_bytes"), 0);
        let size = if durable { BLOCK as usize } else { PINNED };
        assert!(read(&path) == content[..size], "durable: {durable}");
        assert!(volume(&mount, "free_bytes") + (64 << 10) >= free + (PINNED - size) as u64);
        mount.umount().expect("umount");
        mount.fsck().expect("clean");
    }
}

/// A window is the authority for its blocks, and knows the end of one file only.
#[test]
fn a_clone_keeps_its_last_block_where_the_source_became_shorter() {
    for mount in mounts() {
        let (source, clone) = (mount.join("source"), mount.join("clone"));
        let (file, content) = create(&source, 5000);
        open(&clone).reflink_from(&file, 0, 0, 0).expect("clone");
        OpenOptions::new().write(true).open(&source).and_then(|file| file.set_len(4500)).expect("truncate");
        let session = Session::open(mount.path(), ImporterSpec::cpu()).expect("a session");
        let mapping = session.map(&file, .., MapFlags::empty()).expect("an answer");
        assert!(read(&clone) == content);
        let mut short = vec![0; 4500];
        mapping.read_at(0, &mut short).expect("read");
        assert!(short == content[..4500]);
        drop(mapping);
        file.revoke(..).expect("revoke");
        assert!(read(&clone) == content, "after the end of the window");
    }
}
