//! What programs that know nothing of devices do with the content of files, where FUSE leaves it to the server to do
//! as the kernel's own filesystems do. All on a real mount.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt, symlink};
use std::path::Path;
use std::time::SystemTime;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use peerfs_sys::{FileView, Sharing};
use peerfs_tests::ScratchMount;

const MIB: usize = 1 << 20;

fn mount() -> ScratchMount {
    ScratchMount::new("64M", &["-o", "allow_other"]).expect("a mount")
}

fn create(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path).expect("create")
}

#[test]
fn a_seek_finds_what_was_stored_through_a_mapping() {
    let mount = mount();
    let file = create(&mount.join("sparse"));
    file.set_len(MIB as u64).expect("a hole");
    file.write_all_at(&[1; 4096], 65536).expect("data");
    let view = FileView::map(&file, MIB, Sharing::Shared, true).expect("mmap");
    for offset in [20_480, 200_000] {
        view.write(offset, &[2; 10]).expect("store");
    }
    // The kernel may write more than the page that was stored to.
    let data_by = |from, store| matches!(lseek(&file, from, Whence::SeekData), Ok(found) if (from..=store).contains(&found));
    assert!(data_by(0, 20_480) && data_by(69_632, 200_000));
    view.write(70_000, &[3]).expect("store");
    let hole = lseek(&file, 65_536, Whence::SeekHole).expect("a hole");
    assert!(hole > 70_000, "{hole}: the hole moved on while it was looked for");
    view.write(MIB - 1, &[4]).expect("store");
    assert!(data_by(hole, MIB as i64 - 1));
    assert_eq!(lseek(&file, MIB as i64 - 1, Whence::SeekHole), Ok(MIB as i64), "every file ends with a hole");
    assert_eq!(lseek(&file, MIB as i64, Whence::SeekData), Err(Errno::ENXIO));

    let preallocated = create(&mount.join("preallocated"));
    nix::fcntl::posix_fallocate(&preallocated, 0, MIB as i64).expect("room");
    let view = FileView::map(&preallocated, MIB, Sharing::Shared, true).expect("mmap");
    view.write(100_000, &[5]).expect("store");
    assert!(lseek(&preallocated, 0, Whence::SeekData).expect("data") <= 100_000);
}

#[test]
fn listing_leaves_the_access_time_alone_with_nodiratime() {
    for (options, follows) in
        [("strictatime", true), ("strictatime,nodiratime", false), ("nodiratime,diratime,strictatime", true)]
    {
        let mount = ScratchMount::new("64M", &["-o", options]).expect("a mount");
        let (directory, path) = (mount.join("directory"), mount.join("file"));
        fs::create_dir(&directory).expect("room");
        fs::write(&path, b"x").expect("room");
        let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&path).expect("open");
        let listed = File::open(&directory).expect("open");
        for opened in [&file, &listed] {
            opened.set_times(fs::FileTimes::new().set_accessed(SystemTime::UNIX_EPOCH)).expect("utimes");
        }
        assert_eq!(fs::read_dir(&directory).expect("a listing").count(), 0);
        file.read_at(&mut [0; 1], 0).expect("read");
        let moved =
            |opened: &File| opened.metadata().and_then(|metadata| metadata.accessed()).expect("stat") > SystemTime::UNIX_EPOCH;
        assert_eq!((moved(&file), moved(&listed)), (true, follows), "{options}");
    }
}

#[test]
fn reading_a_symbolic_link_is_an_access() {
    let mount = mount();
    let link = mount.join("link");
    symlink("target", &link).expect("room");
    let accessed = || fs::symlink_metadata(&link).and_then(|metadata| metadata.accessed()).expect("lstat");
    let before = accessed();
    assert_eq!(fs::read_link(&link).expect("readlink"), Path::new("target"));
    assert!(accessed() > before);
}
