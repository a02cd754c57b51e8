//! FITRIM, which fstrim(8) asks of a mounted filesystem.

use peerfs_blockdev::BLOCK_BYTES;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::ioctl::Call;
use crate::error::{FsError, Result};
use crate::store::BlockRange;

/// `struct fstrim_range` of linux/fs.h: bytes of the volume.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct TrimRange {
    /// First byte.
    pub start: u64,
    /// Length; afterwards what was discarded.
    pub length: u64,
    /// Shorter runs of free space are left alone.
    pub least: u64,
}

const _: () = assert!(size_of::<TrimRange>() == 24);

/// `_IOWR('X', 121, struct fstrim_range)`.
pub const FITRIM: u32 = 0xC018_5879;

impl Call<'_> {
    pub(super) fn trim(&self, range: TrimRange) -> Result<TrimRange> {
        self.control.owner_only(self.caller)?;
        let core = &self.control.core;
        let blocks = core.volume().total_blocks();
        let first = range.start.div_ceil(BLOCK_BYTES);
        let end = (range.start.saturating_add(range.length) / BLOCK_BYTES).min(blocks);
        if first >= blocks {
            return Err(FsError::errno(libc::EINVAL));
        }
        let blocks = BlockRange::new(first, end.saturating_sub(first));
        let trimmed = core.trim(blocks, range.least.div_ceil(BLOCK_BYTES))?;
        Ok(TrimRange { length: trimmed * BLOCK_BYTES, ..range })
    }
}
