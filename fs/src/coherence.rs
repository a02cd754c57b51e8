//! What the file operations tell the mapping engine, so that a direct mapping
//! stays semantically invisible. The operations know no more of mappings than this.

use peerfs_abi::Trigger;
use peerfs_blockdev::DeviceError;
use peerfs_p2p::Range;

use crate::types::Ino;

/// Keeps a range closed to new direct mappings until it is dropped.
pub type ClosedRange = Box<dyn Send>;

/// The operations' view of the mapping engine. Every call may wait until the
/// revocation deadline, so none is made with an inode or metadata lock held.
pub trait Coherence: Send + Sync {
    /// Ends direct mappings of the range and keeps it closed: before blocks are freed, moved or zeroed in
    /// place. The caller changes the blocks while it holds the guard.
    fn close_range(&self, ino: Ino, range: Range, trigger: Trigger) -> ClosedRange;
    /// Before a READ on a cached handle is answered. `cpu_writers`: cached handles of the file open for writing.
    fn cached_read(&self, ino: Ino, range: Range, cpu_writers: u32);
    /// Before a WRITE on a cached handle, or one from the page cache, is carried out.
    fn cached_write(&self, ino: Ino, range: Range);
    /// Before blocks of the range are read, changed in part and written back: a peer's stores into them in
    /// between would be lost, so mappings that may write the range end, and it stays closed to new ones while
    /// the guard lives. The same before the file grows, whose last block is changed so: a map under way may
    /// have looked at the old size.
    fn partial_write(&self, ino: Ino, range: Range) -> ClosedRange;
    /// Ends direct mappings that may write the range and keeps it closed to new ones while the guard lives: before its
    /// blocks get a second owner, who must not see a peer's later stores. `None`: a pin reaches them.
    fn before_sharing(&self, ino: Ino, range: Range) -> Option<ClosedRange>;
    /// Before the first writable cached handle of the file is opened.
    fn writable_cached_open(&self, ino: Ino);
    /// A handle that is being opened must be a direct one: a pin lives that the page cache would break. The handle
    /// must count among the cached ones before this call, and no longer where the answer is yes.
    fn must_open_direct(&self, _ino: Ino, _write: bool) -> bool {
        false
    }
    /// Copies what peers wrote to the storage device (fsync).
    fn flush(&self, ino: Ino) -> Result<(), DeviceError>;
    /// The size changed; bytes of windows beyond it must become and stay zeros.
    fn size_changed(&self, ino: Ino, old_size: u64, new_size: u64);
    /// A direct mapping of the file (or of any, for `None`) exists or is being made.
    fn is_mapped(&self, ino: Option<Ino>) -> bool;
    /// Of device ranges (bytes) of the file that are about to be freed, those that a pin still reaches: they go into
    /// quarantine instead, until the exporter is told that the pin has ended. The pin no longer belongs to the file
    /// there. Never waits; may be called with inode and metadata locks held.
    fn pinned_blocks(&self, _ino: Ino, _freed: &[Range]) -> Vec<Range> {
        Vec::new()
    }
}

/// For volumes mounted without an aperture, and for tests of plain operations.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoMappings;

impl Coherence for NoMappings {
    fn close_range(&self, _ino: Ino, _range: Range, _trigger: Trigger) -> ClosedRange {
        Box::new(())
    }
    fn cached_read(&self, _ino: Ino, _range: Range, _cpu_writers: u32) {}
    fn cached_write(&self, _ino: Ino, _range: Range) {}
    fn partial_write(&self, _ino: Ino, _range: Range) -> ClosedRange {
        Box::new(())
    }
    fn before_sharing(&self, _ino: Ino, _range: Range) -> Option<ClosedRange> {
        Some(Box::new(()))
    }
    fn writable_cached_open(&self, _ino: Ino) {}
    fn flush(&self, _ino: Ino) -> Result<(), DeviceError> {
        Ok(())
    }
    fn size_changed(&self, _ino: Ino, _old_size: u64, _new_size: u64) {}
    fn is_mapped(&self, _ino: Option<Ino>) -> bool {
        false
    }
}
