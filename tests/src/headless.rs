//! What a server is put together from where no kernel is above it.

use std::io;
use std::sync::Arc;

use peerfs_fs::core::Core;
use peerfs_fs::cpu_cache::CpuCache;
use peerfs_fs::types::{Caller, Ino};
use peerfs_p2p::{CacheProbe, ContextIds, Range};
use peerfs_sys::CacheState;

/// Context ids out of a volume's supply.
pub struct Ids(pub Arc<Core>);

impl ContextIds for Ids {
    fn next_id(&self) -> Option<u64> {
        self.0.reserve_context_ids(1).ok().map(|ids| ids.start)
    }
}

/// There is no kernel, so nothing is cached.
pub struct NoCache;

impl CpuCache for NoCache {
    fn invalidate(&self, _ino: Ino, _range: Range) -> io::Result<()> {
        Ok(())
    }
    fn invalidate_attributes(&self, _ino: Ino) {}
    fn state(&self, _ino: Ino, _range: Range, _probe: CacheProbe) -> io::Result<CacheState> {
        Ok(CacheState { cached: 0, dirty: 0 })
    }
    fn cached_ranges(&self, _ino: Ino, _range: Range, _probe: CacheProbe) -> io::Result<Vec<Range>> {
        Ok(Vec::new())
    }
}

/// This thread, as a caller.
pub fn caller() -> Caller {
    let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    Caller { uid, gid, tid: nix::unistd::gettid().as_raw().cast_unsigned(), umask: 0 }
}
