//! The importer inside the server: it reads what the file holds, by the way that was decided, and leaves nothing behind.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use peerfs_client::{Error, ImporterSpec, MapFlags, Reason, ServerReading, Session};
use peerfs_tests::{Media, ScratchMount};

const MIB: usize = 1 << 20;
const BLOCK: usize = 4096;
/// What is asked to end is gone after so long, or never.
const PATIENCE: Duration = Duration::from_secs(20);

fn read(path: &Path) -> ServerReading {
    peerfs_client::File::open(path).and_then(|file| file.read_by_server(0, u64::MAX)).expect("read by the server")
}

fn open(path: &Path) -> peerfs_client::File {
    peerfs_client::File::open_with(path, OpenOptions::new().read(true).write(true)).expect("open")
}

#[test]
fn all_of_a_file_is_read_directly_whatever_the_backend() {
    let image = ScratchMount::new("64M", &[]).expect("a mount");
    let mapped = ScratchMount::on(Media::Mapped, "64M", &[]).expect("a mount");
    for mut mount in [image, mapped, ScratchMount::in_memory("64M", &[]).expect("a mount")] {
        let path = mount.join("file");
        let mut content: Vec<u8> = (0..5 * MIB + 777).map(|i| (i / 251) as u8).collect();
        fs::write(&path, &content).expect("room");
        let direct = |content: &[u8]| {
            let found = read(&path);
            assert_eq!(found.crc32c, crc32c::crc32c(content), "{}", mount.device());
            assert_eq!((found.fallback, found.reason), (0, None), "{}", mount.device());
            assert_eq!(found.direct_window, content.len() as u64, "{}", mount.device());
        };
        direct(&content);
        content[MIB + 1..MIB + 9000].fill(0xEE);
        let file = OpenOptions::new().write(true).open(&path).expect("open");
        file.write_all_at(&content[MIB + 1..MIB + 9000], MIB as u64 + 1).expect("write");
        direct(&content);
        content.truncate(3 * MIB + 5);
        file.set_len(content.len() as u64).expect("truncate");
        direct(&content);
        drop(file);
        let info = mount.info().expect("info");
        assert_eq!(info["sessions"], 0, "{info:#}");
        mount.umount().expect("unmount");
    }
}

#[test]
fn it_shares_windows_with_programs_and_falls_back_as_they_do() {
    let mount = ScratchMount::new("64M", &["--cmb", "16M"]).expect("a mount");
    let path = mount.join("file");
    fs::write(&path, vec![1; 2 * MIB]).expect("room");
    let session = Session::open(mount.path(), ImporterSpec::cpu()).expect("session");
    let file = open(&path);
    let mapping = session.map(&file, .., MapFlags::WRITE).expect("map");
    mapping.write_at(4090, b"stored by a program").expect("store");
    let mut content = vec![1; 2 * MIB];
    content[4090..4109].copy_from_slice(b"stored by a program");
    let found = read(&path);
    assert_eq!((found.crc32c, found.fallback), (crc32c::crc32c(&content), 0));
    // Holes, and files that want no direct mapping, are read through the filesystem.
    File::options().write(true).open(&path).and_then(|file| file.set_len(3 * MIB as u64)).expect("grow");
    content.resize(3 * MIB, 0);
    let found = read(&path);
    assert_eq!((found.crc32c, found.fallback, found.reason), (crc32c::crc32c(&content), MIB as u64, Some(Reason::Hole)));
    peerfs_sys::set_xattr(&path, "user.peerfs.direct", b"never").expect("policy");
    let found = read(&path);
    assert_eq!((found.crc32c, found.reason), (crc32c::crc32c(&content), Some(Reason::Policy)));
    assert_eq!(found.direct_window, 0);
}

#[test]
fn a_directory_and_a_file_that_is_not_open_for_reading_are_refused() {
    let mount = ScratchMount::new("64M", &[]).expect("a mount");
    let path = mount.join("file");
    fs::write(&path, [1; 100]).expect("room");
    let unreadable = peerfs_client::File::open_with(&path, OpenOptions::new().write(true)).expect("open");
    let refused = unreadable.read_by_server(0, 100).expect_err("not open for reading");
    assert!(refused.to_string().contains("ermission"), "{refused}");
    assert_eq!(read(&path).bytes(), 100);
}

#[test]
fn it_counts_as_a_session_of_the_user() {
    let mount = ScratchMount::new("64M", &["-o", "user_sessions=1"]).expect("a mount");
    let path = mount.join("file");
    fs::write(&path, [1; 100]).expect("room");
    let file = open(&path);
    let session = Session::open(mount.path(), ImporterSpec::cpu()).expect("the user's only session");
    let refused = file.read_by_server(0, 100).expect_err("one more");
    let Error::System { source, .. } = &refused else { panic!("{refused:?}") };
    assert_eq!(source.raw_os_error(), Some(libc::EMFILE), "{refused}");
    drop(session);
    // The kernel closes the session's file a little later.
    let start = Instant::now();
    while let Err(error) = file.read_by_server(0, 100) {
        assert!(start.elapsed() < PATIENCE, "{error}");
        std::thread::yield_now();
    }
}

/// A file whose blocks hold one letter each is cut and filled again, while it is read through windows.
#[test]
fn what_is_read_while_the_file_is_cut_and_refilled_is_what_it_held() {
    let mount = ScratchMount::new("64M", &["--cmb", "16M"]).expect("a mount");
    let path = mount.join("file");
    fs::write(&path, vec![b'a'; 64 * BLOCK]).expect("room");
    let legal: Vec<u32> = [0, b'a', b'b', b'c'].map(|byte| crc32c::crc32c(&[byte; BLOCK])).into();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let file = OpenOptions::new().write(true).open(&path).expect("open");
            for round in 0..200_usize {
                file.set_len((round % 7 * BLOCK) as u64).expect("truncate");
                let letter = [b'a', b'b', b'c'][round % 3];
                (0..64).for_each(|block| file.write_all_at(&[letter; BLOCK], (block * BLOCK) as u64).expect("write"));
            }
            stop.store(true, Ordering::Relaxed);
        });
        let file = peerfs_client::File::open(&path).expect("open");
        let mut direct = 0;
        for block in (0..64).cycle() {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let found = file.read_by_server((block * BLOCK) as u64, BLOCK as u64).expect("read");
            let whole = found.bytes() == BLOCK as u64;
            assert!(!whole || legal.contains(&found.crc32c), "block {block}: {found:?}");
            direct += found.direct_window;
        }
        assert!(direct > 0, "nothing was read directly");
    });
    assert_eq!(mount.info().expect("info")["sessions"], 0);
}
