//! A client cannot map without letting the server see that the page cache is empty.

use std::fs::{self, File};
use std::os::fd::AsRawFd;

use peerfs_abi::{MapFlags, Reason, ioctl};
use peerfs_tests::ScratchMount;
use peerfs_tests::torture::raw::{RawSession, direct_segments, open_direct, request};

#[test]
fn a_map_needs_its_own_files_descriptor() {
    let mount = ScratchMount::new("64M", &["--cmb", "8M"]).expect("mount");
    for name in ["file", "other"] {
        fs::write(mount.join(name), vec![7; 8192]).expect("write");
    }
    let session = RawSession::open(&mount.path()).expect("session");
    let file = open_direct(&mount.join("file"), false).expect("open");
    let other = File::open(mount.join("other")).expect("open");

    let mut argument = request(&file, 0, 8192, MapFlags::empty());
    argument.context_id = session.context.context_id;
    argument.file_fd = -1;
    let error = peerfs_sys::ioctl(&file, ioctl::MAP, &mut *argument).expect_err("nothing to look through");
    assert_eq!(error.raw_os_error(), Some(libc::EBADF));

    let mut argument = request(&file, 0, 8192, MapFlags::empty());
    argument.context_id = session.context.context_id;
    argument.file_fd = other.as_raw_fd();
    peerfs_sys::ioctl(&file, ioctl::MAP, &mut *argument).expect("an answer");
    assert_eq!(direct_segments(&argument).count(), 0);
    assert_eq!(Reason::from_code(argument.segments[0].reason), Some(Reason::PageCached));

    let answer = session.map_calmly(&file, 0, 8192, MapFlags::empty()).expect("an answer");
    assert_eq!(direct_segments(&answer).count(), 1);
}
