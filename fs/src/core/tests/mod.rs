//! Tests of the filesystem without a transport.

mod concurrency;
mod damage;
mod device;
mod files;
mod memory;
mod model;
mod model_state;
mod names;
mod pins;
mod reflink;
mod space;

use std::sync::Arc;
use std::time::Duration;

use peerfs_blockdev::BlockDevice;

use self::device::PoisonDevice;
use super::{CloneRange, Core, MountOptions};
use crate::coherence::NoMappings;
use crate::ops::Operations;
use crate::store::testdev::TestDevice;
use crate::store::{FormatOptions, OpenOptions, Volume, check};
use crate::types::*;

const ALICE: Caller = Caller { uid: 1000, gid: 1000, tid: 1, umask: 0 };

const READ_WRITE: OpenFlags =
    OpenFlags { read: true, write: true, truncate: false, append: false, direct: false, no_atime: false };

const DIRECT: WriteOrigin = WriteOrigin { through_cache: false, from_page_cache: false, kill_suid: false, synchronous: false };

/// A device and what is mounted on it.
struct Mounted {
    disk: Arc<TestDevice>,
    core: Arc<Core>,
}

impl Mounted {
    fn new(bytes: u64) -> Self {
        let disk = Arc::new(TestDevice::new(bytes));
        Volume::format(disk.clone(), &FormatOptions::default()).expect("mkfs");
        Self::on(disk)
    }

    /// Commits happen only when asked for.
    fn on(disk: Arc<TestDevice>) -> Self {
        let options = MountOptions { commit_interval: Duration::from_secs(3600), ..MountOptions::default() };
        Self::with(disk, options)
    }

    fn with(disk: Arc<TestDevice>, options: MountOptions) -> Self {
        let device: Arc<dyn BlockDevice> = Arc::new(PoisonDevice(disk.clone()));
        let store_options = OpenOptions { read_only: options.read_only, ..OpenOptions::default() };
        let volume = Volume::open(device.clone(), &store_options).expect("open");
        let core = Core::open(volume, device, Arc::new(NoMappings), options).expect("mount");
        Mounted { disk, core }
    }

    /// An orderly end and a new mount.
    fn remount(self) -> Self {
        self.core.close().expect("close");
        drop(self.core);
        assert_clean(&self.disk);
        Self::on(self.disk)
    }

    fn create(&self, parent: Ino, name: &str) -> (Ino, Handle) {
        let (attr, opened) = self.core.create(ALICE, parent, name.as_bytes(), 0o644, true, READ_WRITE).expect("create");
        (attr.ino, opened.handle)
    }

    fn mkdir(&self, parent: Ino, name: &str) -> Ino {
        let made = self.core.mkdir(ALICE, parent, name.as_bytes(), 0o755);
        made.expect("mkdir").ino
    }

    fn write(&self, handle: Handle, offset: u64, data: &[u8]) {
        let written = self.core.write(ALICE, handle, offset, data, DIRECT);
        assert_eq!(written, Ok(data.len() as u32));
    }

    fn read(&self, handle: Handle, offset: u64, length: u32) -> Vec<u8> {
        let data = self.core.read(handle, offset, length, false);
        data.expect("read").to_vec()
    }

    fn truncate(&self, ino: Ino, size: u64) {
        let set = SetAttr { size: Some(size), ..SetAttr::default() };
        self.core.setattr(ALICE, ino, None, set).expect("truncate");
    }

    /// Clones between files that are open for nothing else.
    fn reflink(&self, source: Ino, target: Ino, range: CloneRange) -> crate::error::Result<u64> {
        let from = self.core.open(ALICE, source, READ_WRITE)?.handle;
        let to = self.core.open(ALICE, target, READ_WRITE)?.handle;
        let name = self.core.name_source(from)?;
        let cloned = self.core.reflink(ALICE, to, name, range);
        self.core.release(from);
        assert_eq!(code(self.core.reflink(ALICE, to, name, range)), libc::EXDEV, "a name ends with its handle");
        self.core.release(to);
        cloned
    }

    /// Names in a directory, without `.` and `..`.
    fn names(&self, ino: Ino) -> Vec<String> {
        let handle = self.core.opendir(ino, READ_WRITE).expect("opendir");
        let mut names = Vec::new();
        let mut sink = |entry: &DirEntry<'_>| {
            names.push(String::from_utf8_lossy(entry.name).into_owned());
            true
        };
        self.core.readdir(handle, 2, false, &mut sink).expect("readdir");
        self.core.releasedir(handle);
        names
    }
}

fn code<T: std::fmt::Debug>(result: crate::error::Result<T>) -> i32 {
    result.expect_err("must fail").code()
}

fn assert_clean(disk: &Arc<TestDevice>) {
    let report = check(disk.clone()).expect("fsck reads the volume");
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(report.free_blocks + report.used_blocks, report.total_blocks);
}
