//! Clones on a real mount, among page caches and device mappings.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Command, Output};

use peerfs_client::{ImporterSpec, MapFlags, Mapping, Reason, Session};
use peerfs_sys::{FileView, Sharing};
use peerfs_tests::{ScratchMount, peerfs};

const MIB: usize = 1 << 20;

fn mounts() -> [ScratchMount; 2] {
    let image = ScratchMount::new("64M", &["--cmb", "16M"]).expect("a mount");
    [image, ScratchMount::in_memory("64M", &[]).expect("a mount")]
}

fn reflink(source: &Path, destination: &Path) -> Output {
    Command::new(peerfs()).arg("reflink").arg(source).arg(destination).output().expect("peerfs runs")
}

fn open(path: &Path) -> peerfs_client::File {
    peerfs_client::File::open_with(path, OpenOptions::new().read(true).write(true)).expect("open")
}

fn reasons(mapping: &Mapping) -> Vec<Option<Reason>> {
    mapping.segments().iter().map(|segment| segment.reason).collect()
}

#[test]
fn a_clone_has_what_the_source_had_and_keeps_it() {
    for mut mount in mounts() {
        let (source, clone) = (mount.join("source"), mount.join("clone"));
        fs::write(&source, vec![1; 4 * MIB + 100]).expect("room");
        // Stored through a mapping only: nobody has heard of it.
        let file = OpenOptions::new().read(true).write(true).open(&source).expect("open");
        let view = FileView::map(&file, MIB, Sharing::Shared, true).expect("mmap");
        view.write(5000, &[2; 10]).expect("store");
        fs::write(&clone, vec![9; 5 * MIB]).expect("room");
        assert_eq!(fs::read(&clone).expect("read").len(), 5 * MIB, "its pages are cached");

        let free = nix::sys::statvfs::statvfs(&mount.path()).expect("statfs").blocks_free();
        let made = reflink(&source, &clone);
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let now = nix::sys::statvfs::statvfs(&mount.path()).expect("statfs").blocks_free();
        assert!(now >= free, "nothing was copied, and what the clone had is free");
        let mut expected = vec![1; 4 * MIB + 100];
        expected[5000..5010].fill(2);
        assert!(fs::read(&clone).expect("read") == expected);

        // Buffered, through a mapping, and direct: the other file never changes.
        file.write_all_at(&[3; 100], 10).expect("write");
        view.write(9000, &[4; 10]).expect("store");
        open(&source).write_at(MIB as u64, &[5; 8192]).expect("write");
        file.set_len(3 * MIB as u64 + 1).expect("truncate");
        assert!(fs::read(&clone).expect("read") == expected);
        OpenOptions::new().write(true).open(&clone).and_then(|file| file.write_all_at(&[6; 10], 0)).expect("write");
        let source_now = fs::read(&source).expect("read");
        assert_eq!((source_now.len(), &source_now[..3], &source_now[9000..9003]), (3 * MIB + 1, &[1; 3][..], &[4; 3][..]));
        drop((view, file));
        mount.umount().expect("umount");
        if mount.image().exists() {
            mount.fsck().expect("clean");
        }
    }
}

#[test]
fn mappings_for_writing_end_with_a_clone_and_come_back_after_a_rewrite() {
    for mount in mounts() {
        let (source, clone) = (mount.join("source"), mount.join("clone"));
        fs::write(&source, vec![1; 2 * MIB]).expect("room");
        let session = Session::open(mount.path(), ImporterSpec::cpu()).expect("a session");
        let file = open(&source);
        let writing = session.map(&file, .., MapFlags::WRITE).expect("map");
        assert_eq!(reasons(&writing), [None]);
        writing.write_at(4096, &[2; 4096]).expect("store");
        let copy = peerfs_client::File::open_with(&clone, OpenOptions::new().read(true).write(true).create(true)).expect("open");
        assert_eq!(copy.reflink_from(&file, 0, 0, 0).expect("clone"), 2 * MIB as u64);

        // The device's last store is in both; its next one goes to the source alone, past the mapping.
        let moved = writing.write_at(8192, &[3; 4096]).expect("store");
        assert_eq!((moved.direct(), moved.fallback), (0, 4096), "the mapping was taken back");
        let mut block = vec![0; 4096];
        for (offset, old, new) in [(4096, 2, 2), (8192, 1, 3)] {
            copy.read_at(offset, &mut block).expect("read");
            assert_eq!(block, [old; 4096]);
            file.read_at(offset, &mut block).expect("read");
            assert_eq!(block, [new; 4096]);
        }
        let again = session.map(&file, .., MapFlags::WRITE).expect("an answer");
        assert_eq!(reasons(&again), [Some(Reason::SharedExtent), None, Some(Reason::SharedExtent)]);
        again.unmap().expect("unmap");
        let reading = session.map(&file, .., MapFlags::empty()).expect("map");
        assert!(reasons(&reading).iter().all(Option::is_none), "reading shared blocks is harmless");

        // A rewrite moves the blocks, so also mappings for reading end.
        file.write_at(0, &vec![4; 2 * MIB]).expect("rewrite");
        let moved = reading.read_at(0, &mut block).expect("device read");
        assert_eq!((&block, moved.direct()), (&vec![4; 4096], 0));
        let direct = session.map(&file, .., MapFlags::WRITE).expect("map");
        assert!(reasons(&direct).iter().all(Option::is_none), "{:?}", direct.segments());
        direct.write_at(0, &[5; 4096]).expect("store");
        copy.read_at(0, &mut block).expect("read");
        assert_eq!(block, [1; 4096], "the clone keeps what it was given");
    }
}

#[test]
fn the_command_refuses_in_one_line() {
    let [mount, other] = mounts();
    let (file, elsewhere) = (mount.join("file"), other.join("file"));
    File::create(&file).expect("room");
    fs::create_dir(mount.join("directory")).expect("room");
    let outside = mount.directory().join("outside");
    fs::write(&outside, b"x").expect("room");
    for (source, destination) in [
        (file.clone(), file.clone()),
        (file.clone(), mount.join("directory")),
        (mount.join("directory"), file.clone()),
        (file.clone(), elsewhere),
        (outside.clone(), file.clone()),
        (mount.join("missing"), file.clone()),
    ] {
        let refused = reflink(&source, &destination);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert_eq!((refused.status.code(), said.lines().count()), (Some(1), 1), "{source:?} {destination:?}: {said}");
    }
    let directory = File::open(mount.join("directory")).expect("open");
    let mut argument = peerfs_abi::ioctl::Reflink {
        abi_version: peerfs_abi::ABI_VERSION,
        operation: peerfs_abi::ioctl::reflink::NAME_SOURCE,
        source_name: 0,
        source_offset: 0,
        destination_offset: 0,
        length: 0,
    };
    let refused = peerfs_sys::ioctl(&directory, peerfs_abi::ioctl::REFLINK, &mut argument).expect_err("a directory");
    assert_eq!(refused.raw_os_error(), Some(libc::EISDIR));
    assert_eq!(fs::metadata(&file).expect("stat").size(), 0);
}
