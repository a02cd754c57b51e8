//! [`CpuCache`] through FUSE notifications and cachestat(2).

use std::io;
use std::os::fd::AsFd;
use std::sync::OnceLock;

use fuser::{INodeNo, Notifier};
use peerfs_p2p::{CacheProbe, Range};
use peerfs_sys::CacheState;

use crate::cpu_cache::CpuCache;
use crate::types::Ino;

/// The page cache above one FUSE mount.
#[derive(Default)]
pub struct FuseCache {
    session: OnceLock<(Notifier, u64)>,
}

impl FuseCache {
    /// Starts to work once the session exists. `device`: the mount's `st_dev`.
    pub fn connect(&self, notifier: Notifier, device: u64) {
        let _second_time_changes_nothing = self.session.set((notifier, device));
    }

    fn notify(&self, ino: Ino, offset: i64, length: i64) -> io::Result<()> {
        let Some((notifier, _)) = self.session.get() else { return Ok(()) };
        match notifier.inval_inode(INodeNo(ino), offset, length) {
            // The kernel does not know the inode, so it has nothing cached.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            outcome => outcome,
        }
    }
}

impl CpuCache for FuseCache {
    fn invalidate(&self, ino: Ino, range: Range) -> io::Result<()> {
        let offset = i64::try_from(range.start).unwrap_or(i64::MAX);
        let length = i64::try_from(range.length()).unwrap_or(i64::MAX - offset);
        self.notify(ino, offset, length)
    }

    fn invalidate_attributes(&self, ino: Ino) {
        if let Err(error) = self.notify(ino, -1, 0) {
            tracing::debug!(ino, %error, "attributes could not be invalidated");
        }
    }

    fn state(&self, ino: Ino, range: Range, probe: CacheProbe) -> io::Result<CacheState> {
        let pid = peerfs_sys::thread_group(probe.tid)?;
        let named = peerfs_sys::name_descriptor(pid, probe.fd)?;
        // A client could name another file to hide its cached pages, or one of a filesystem that it serves itself
        // and that never answers us. So nothing of the file is touched before it is known to be ours.
        let device = self.session.get().map(|(_, device)| *device);
        let (found_device, found_ino) = peerfs_sys::identity(named.as_fd())?;
        if found_ino != ino || Some(found_device) != device {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        }
        let file = peerfs_sys::open_named(named.as_fd())?;
        peerfs_sys::cachestat(file.as_fd(), range.start, range.length())
    }
}
