//! [`CpuCache`] through FUSE notifications and cachestat(2).

use std::io;
use std::os::fd::AsFd;
use std::sync::OnceLock;

use fuser::{INodeNo, Notifier};
use nix::sys::stat::fstat;
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
        let file = peerfs_sys::duplicate_descriptor(pid, probe.fd)?;
        // A client could name another file to hide its cached pages.
        let stat = fstat(&file)?;
        let device = self.session.get().map(|(_, device)| *device);
        if stat.st_ino != ino || Some(stat.st_dev) != device {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        }
        peerfs_sys::cachestat(file.as_fd(), range.start, range.length())
    }
}
