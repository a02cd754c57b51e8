//! The kernel's page cache, as the mapping layer sees it. The transport implements it.

use std::io;

use peerfs_p2p::{CacheProbe, Range};
use peerfs_sys::CacheState;

use crate::types::Ino;

/// Access to the page cache above a mount.
pub trait CpuCache: Send + Sync {
    /// Writes back and drops the cached pages of a range. Causes reads and writes of the file, so it must not be
    /// called from a thread that serves them, nor with a lock held that serving needs. Success is no proof: the
    /// kernel hides pages that would not go.
    fn invalidate(&self, ino: Ino, range: Range) -> io::Result<()>;

    /// The kernel's copy of the attributes is no longer true.
    fn invalidate_attributes(&self, ino: Ino);

    /// What is cached of a range, seen through a descriptor of the client's.
    fn state(&self, ino: Ino, range: Range, probe: CacheProbe) -> io::Result<CacheState>;

    /// Where pages are cached in a range, seen through a descriptor of the client's: sorted, apart from each other,
    /// possibly wider than the pages themselves.
    fn cached_ranges(&self, ino: Ino, range: Range, probe: CacheProbe) -> io::Result<Vec<Range>>;
}
