//! A run of device blocks.

use std::fmt;

use peerfs_blockdev::BLOCK_BYTES;

/// Consecutive blocks of the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockRange {
    /// First block.
    pub start: u64,
    /// Number of blocks of 4096 bytes.
    pub count: u64,
}

impl BlockRange {
    /// `count` blocks from `start`.
    pub const fn new(start: u64, count: u64) -> Self {
        BlockRange { start, count }
    }

    /// The block after the last, saturating on nonsense from a hostile image.
    pub const fn end(self) -> u64 {
        self.start.saturating_add(self.count)
    }

    /// True for non-empty ranges that lie inside blocks `low..high`.
    pub const fn is_within(self, low: u64, high: u64) -> bool {
        self.count > 0 && self.start >= low && self.start < high && self.count <= high - self.start
    }

    /// True when the two have a block in common.
    pub const fn overlaps(self, other: BlockRange) -> bool {
        self.start < other.end() && other.start < self.end()
    }

    /// Byte offset on the device.
    pub const fn byte_offset(self) -> u64 {
        self.start.saturating_mul(BLOCK_BYTES)
    }

    /// Length in bytes.
    pub const fn byte_length(self) -> u64 {
        self.count.saturating_mul(BLOCK_BYTES)
    }
}

impl fmt::Display for BlockRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "blocks {}+{}", self.start, self.count)
    }
}
