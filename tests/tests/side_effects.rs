//! What a device's stores do beside storing: times, set-id bits, durability, and the end of the file.
//! All on a real mount.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use peerfs_abi::ABI_VERSION;
use peerfs_abi::ioctl::{self, Revoke};
use peerfs_client::{ImporterSpec, MapFlags, Reason, Session};
use peerfs_conformance::kit::raw::{RawSession, direct_segments, open_direct};
use peerfs_sys::Window;
use peerfs_tests::ScratchMount;
use zerocopy::FromZeros;

const MIB: usize = 1 << 20;
const CHILD_FILE: &str = "PEERFS_TEST_CHILD_FILE";

fn mount(options: &[&str]) -> ScratchMount {
    let mut all = vec!["--cmb", "16M", "-o", "commit=3600"];
    all.extend_from_slice(options);
    ScratchMount::new("64M", &all).expect("a mount")
}

/// Everything of a file as one window per chunk, through the bare ABI: stores reach the whole of the last block.
struct Device {
    /// Its mappings live as long.
    _session: RawSession,
    file: File,
    windows: Vec<(u64, Window)>,
}

impl Device {
    fn map(mount: &Path, file: &Path) -> Device {
        let session = RawSession::open(mount).expect("a session");
        let file = open_direct(file, true).expect("open");
        let answer = session.map_calmly(&file, 0, 0, MapFlags::WRITE).expect("map");
        let mut windows = Vec::new();
        for segment in direct_segments(&answer) {
            let memory = session.take(segment.grant_id, true).expect("a grant");
            let window = Window::map(memory, segment.grant_length as usize, true).expect("mmap");
            windows.push((segment.file_offset - segment.grant_offset, window));
        }
        assert!(!windows.is_empty(), "nothing is direct");
        Device { _session: session, file, windows }
    }

    /// Takes the mapping back, so that the window is written back.
    fn end(&self) {
        let mut revoke = Revoke::new_zeroed();
        revoke.abi_version = ABI_VERSION;
        peerfs_sys::ioctl(&self.file, ioctl::REVOKE, &mut revoke).expect("revoke");
        assert_eq!(revoke.revoked, self.windows.len() as u64);
    }

    fn store(&self, offset: u64, bytes: &[u8]) {
        let (start, window) = self.windows.iter().rev().find(|(start, _)| *start <= offset).expect("mapped");
        window.write((offset - start) as usize, bytes).expect("store");
    }
}

fn content(path: &Path) -> Vec<u8> {
    fs::read(path).expect("read")
}

#[test]
fn a_write_grant_changes_times_and_ends_set_id_bits() {
    let mount = mount(&[]);
    let path = mount.join("program");
    fs::write(&path, vec![1; MIB]).expect("room");
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let reset = || {
        fs::set_permissions(&path, PermissionsExt::from_mode(0o6755)).expect("chmod");
        File::options().write(true).open(&path).and_then(|file| file.set_modified(long_ago)).expect("utimes");
        fs::metadata(&path).expect("stat")
    };
    let file = peerfs_client::File::open_with(&path, OpenOptions::new().read(true).write(true)).expect("open");
    let session = Session::open(mount.path(), ImporterSpec::cpu()).expect("a session");

    let before = reset();
    let reading = session.map(&file, .., MapFlags::empty()).expect("map");
    assert!(reading.segments().iter().all(|segment| segment.reason.is_none()));
    let after = fs::metadata(&path).expect("stat");
    assert_eq!((after.mode() & 0o7777, after.mtime(), after.ctime_nsec()), (0o6755, before.mtime(), before.ctime_nsec()));
    reading.unmap().expect("unmap");

    let writing = session.map(&file, .., MapFlags::WRITE).expect("map");
    assert!(writing.segments().iter().all(|segment| segment.reason.is_none()));
    let after = fs::metadata(&path).expect("stat");
    assert_eq!(after.mode() & 0o7777, 0o755, "set-user-id and set-group-id are gone");
    assert!(after.modified().expect("mtime") > long_ago);
    assert!((after.ctime(), after.ctime_nsec()) > (before.ctime(), before.ctime_nsec()));
}

/// Body of the child of the test below.
#[test]
fn child_stores_and_waits() {
    let Some(path) = std::env::var_os(CHILD_FILE) else {
        return;
    };
    let path = Path::new(&path);
    let device = Device::map(path.parent().expect("a directory"), path);
    device.store(8192, &[0xc3; 8192]);
    device.store(3 * MIB as u64, &[0xc4; 4096]);
    println!("stored");
    std::io::stdin().read_to_end(&mut Vec::new()).expect("the parent holds it");
}

#[test]
fn fsync_keeps_what_every_process_stored() {
    let mut mount = mount(&[]);
    let path = mount.join("file");
    File::create(&path).and_then(|mut file| file.write_all(&vec![1; 4 * MIB]).and_then(|()| file.sync_all())).expect("room");
    let mut child = Command::new("/proc/self/exe")
        .args(["--exact", "child_stores_and_waits", "--nocapture"])
        .env(CHILD_FILE, &path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the test can run itself");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    assert!(lines.by_ref().map_while(Result::ok).any(|line| line.contains("stored")), "the child maps and stores");
    // Another process, which never mapped the file.
    File::open(&path).and_then(|file| file.sync_all()).expect("fsync");
    mount.crash().expect("the server can be killed");
    drop(child.stdin.take());
    child.wait().expect("the child ends");
    mount.mount(&["--cmb", "16M"]).expect("mount");
    let mut expected = vec![1; 4 * MIB];
    expected[8192..16384].fill(0xc3);
    expected[3 * MIB..3 * MIB + 4096].fill(0xc4);
    assert!(content(&path) == expected, "a store that fsync covered is lost");
}

/// Makes a file whose device stored beyond its end longer.
type Grow = fn(&Path, &Device);

#[test]
fn bytes_beyond_the_end_become_zeros() {
    // Written back (by an unmap), or before the file grows in one of three ways.
    let grow: [(&str, Grow); 4] = [
        ("truncate after the mapping", |path, device| {
            device.end();
            OpenOptions::new().write(true).open(path).and_then(|file| file.set_len(10_000)).expect("truncate");
        }),
        ("truncate", |path, _| {
            OpenOptions::new().write(true).open(path).and_then(|file| file.set_len(10_000)).expect("truncate");
        }),
        ("write", |path, _| {
            let file = OpenOptions::new().write(true).open(path).expect("open");
            file.write_all_at(&[9], 9_999).expect("write");
        }),
        ("fallocate", |path, _| {
            let file = OpenOptions::new().write(true).open(path).expect("open");
            nix::fcntl::fallocate(&file, nix::fcntl::FallocateFlags::empty(), 0, 10_000).expect("fallocate");
        }),
    ];
    for (what, grow) in grow {
        let mut mount = mount(&[]);
        let path = mount.join("file");
        fs::write(&path, vec![1; 5000]).expect("room");
        let device = Device::map(&mount.path(), &path);
        device.store(4096, &[7; 4096]);
        grow(&path, &device);
        let mut expected = vec![0; 10_000];
        expected[..4096].fill(1);
        expected[4096..5000].fill(7);
        if what == "write" {
            expected[9_999] = 9;
        }
        assert!(content(&path) == expected, "{what}: a device's bytes came to light");
        drop(device);
        mount.umount().expect("umount");
        mount.fsck().expect("clean");
        mount.mount(&["--cmb", "16M"]).expect("mount");
        assert!(content(&path) == expected, "{what}: after a new mount");
    }
}

#[test]
fn nothing_is_granted_for_writing_where_nothing_may_be_written() {
    let mut mount = mount(&[]);
    let path = mount.join("file");
    fs::write(&path, vec![1; MIB]).expect("room");
    let refused = |mount: &ScratchMount, path: &Path| {
        let session = Session::open(mount.path(), ImporterSpec::cpu()).expect("a session");
        let file = peerfs_client::File::open(path).expect("open");
        let mapping = session.map(&file, .., MapFlags::WRITE).expect("an answer");
        assert!(mapping.segments().iter().all(|segment| segment.reason == Some(Reason::ReadOnly)), "{:?}", mapping.segments());
        let reading = session.map(&file, .., MapFlags::empty()).expect("map");
        assert!(reading.segments().iter().all(|segment| segment.reason.is_none()), "{:?}", reading.segments());
    };
    refused(&mount, &path);
    mount.umount().expect("umount");
    mount.mount(&["--cmb", "16M", "-o", "ro"]).expect("mount");
    let before = fs::metadata(&path).expect("stat");
    refused(&mount, &path);
    assert!(OpenOptions::new().write(true).open(&path).is_err());
    let after = fs::metadata(&path).expect("stat");
    assert_eq!((before.mtime_nsec(), before.ctime_nsec()), (after.mtime_nsec(), after.ctime_nsec()));
}
