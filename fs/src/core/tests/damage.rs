//! Images that nobody should make, and devices that fail at the worst moment.

use peerfs_blockdev::{Effect, FaultDevice, FaultRule, OpKind, Trigger};

use super::*;
use crate::store::{Batch, DirentByName, Extent, FileKind};

const BYTES: u64 = 32 << 20;

/// A mount of a volume with a regular file `f` and the given changes behind the filesystem's back.
fn mount_with(change: impl FnOnce(&Volume, &mut Batch, Ino)) -> (Mounted, Ino) {
    let fs = Mounted::new(BYTES);
    let (ino, _) = fs.create(ROOT_INO, "f");
    fs.core.close().expect("close");
    let volume = Volume::open(fs.disk.clone(), &OpenOptions::default()).expect("open");
    let mut batch = Batch::new();
    change(&volume, &mut batch, ino);
    volume.apply(batch).expect("apply");
    volume.close().expect("close");
    (Mounted::on(fs.disk), ino)
}

#[test]
fn a_directory_in_itself_is_an_error_and_no_deadlock() {
    let (fs, _) = mount_with(|_, batch, _| {
        batch.put_dirent(ROOT_INO, b"loop", DirentByName { ino: ROOT_INO, kind: FileKind::Directory, cookie: 9 });
    });
    assert_eq!(code(fs.core.rmdir(ALICE, ROOT_INO, b"loop")), libc::EIO);
    assert_eq!(code(fs.core.rename(ALICE, ROOT_INO, b"loop", ROOT_INO, b"x", RenameMode::Replace)), libc::EIO);
    assert_eq!(code(fs.core.rename(ALICE, ROOT_INO, b"f", ROOT_INO, b"loop", RenameMode::Exchange)), libc::EIO);
}

#[test]
fn listing_ends_at_an_impossible_cookie() {
    let (fs, _) = mount_with(|_, batch, ino| {
        batch.put_dirent(ROOT_INO, b"last", DirentByName { ino, kind: FileKind::Regular, cookie: u64::MAX });
    });
    let handle = fs.core.opendir(ROOT_INO, READ_WRITE).expect("opendir");
    for (from, expected) in [(0, 3), (u64::MAX, 0)] {
        let mut listed = 0;
        let mut sink = |_: &DirEntry<'_>| {
            listed += 1;
            listed < 1000
        };
        fs.core.readdir(handle, from, false, &mut sink).expect("readdir");
        assert_eq!(listed, expected);
    }
}

#[test]
fn a_file_cannot_lie_on_the_metadata() {
    let (fs, ino) = mount_with(|volume, batch, ino| {
        let area = volume.metadata_extents()[0];
        batch.put_extent(ino, 0, &Extent { device_block: area.start + 1, len_blocks: 1, flags: 0 });
    });
    let file = fs.core.open(ALICE, ino, READ_WRITE).expect("open").handle;
    assert_eq!(code(fs.core.write(ALICE, file, 0, &[1; 4096], DIRECT)), libc::EIO);
}

/// Blocks that a failed flush dropped may be marked clean: a second fsync must not succeed.
#[test]
fn a_flush_without_space_is_not_forgotten() {
    let disk = Arc::new(TestDevice::new(BYTES));
    Volume::format(disk.clone(), &FormatOptions::default()).expect("mkfs");
    let device = FaultDevice::new(disk, 1);
    let volume = Volume::open(Arc::new(device.clone()), &OpenOptions::default()).expect("open");
    let options = MountOptions { commit_interval: Duration::from_secs(3600), ..MountOptions::default() };
    let core = Core::open(volume, Arc::new(device.clone()), Arc::new(NoMappings), options).expect("mount");
    let file = core.create(ALICE, ROOT_INO, b"f", 0o644, true, READ_WRITE).expect("create").1.handle;
    core.write(ALICE, file, 0, &[1; 4096], DIRECT).expect("write");
    core.fsync(file, false).expect("fsync");
    core.write(ALICE, file, 0, &[2; 4096], DIRECT).expect("overwrite");

    device.add_rule(FaultRule { kind: OpKind::Flush, trigger: Trigger::Nth(0), effect: Effect::Error(libc::ENOSPC) });
    assert_eq!(code(core.fsync(file, true)), libc::ENOSPC);
    assert_eq!(code(core.fsync(file, true)), libc::EIO);
}
