//! Copy on write: blocks that have another owner are left to it.
//!
//! An extent flagged as shared may have lost its other owners meanwhile; the store
//! knows. What still has one is replaced by new blocks before it is changed. As the
//! file's blocks change place then, direct mappings of them end first, which must
//! not happen with a lock held: an operation that finds shared blocks in a range
//! that is not closed gives up and starts again with it closed.

use peerfs_abi::Trigger;
use peerfs_blockdev::BLOCK_BYTES;
use peerfs_p2p::Range;

use super::extent_map::{ExtentMap, Segment, Touched};
use super::inode::{Content, Inode};
use super::io::Piece;
use super::meta::Txn;
use super::{Core, FsError, Result};
use crate::coherence::ClosedRange;
use crate::store::{AllocRequest, BlockRange, Extent, extent_flags};

/// Says "close the range first, then start again"; leaves [`Core::relocating`] never.
const CLOSE_FIRST: i32 = libc::ERESTART;

/// The range in which an operation may move blocks.
#[derive(Default)]
pub(super) struct Relocation {
    closed: Option<(Range, ClosedRange)>,
    /// What the last try would have needed.
    wanted: Option<Range>,
}

impl Relocation {
    /// Goes on if the blocks are closed to direct mappings.
    fn require(&mut self, blocks: Range) -> Result<()> {
        let covered = self.closed.as_ref().is_some_and(|(closed, _)| closed.start <= blocks.start && blocks.end <= closed.end);
        if blocks.is_empty() || covered {
            return Ok(());
        }
        self.wanted = Some(match &self.closed {
            Some((closed, _)) => Range { start: closed.start.min(blocks.start), end: closed.end.max(blocks.end) },
            None => blocks,
        });
        Err(FsError::errno(CLOSE_FIRST))
    }
}

/// What an operation is about to do to a file's extents.
pub(super) struct Change<'a> {
    pub txn: Txn,
    pub touched: Touched,
    pub relocation: &'a mut Relocation,
}

impl<'a> Change<'a> {
    pub(super) fn new(relocation: &'a mut Relocation) -> Self {
        Change { txn: Txn::new(), touched: Touched::new(), relocation }
    }
}

impl Core {
    /// Runs an operation until every block that it moves lies in a range closed to direct mappings. It takes its locks
    /// itself and leaves everything as it was when it fails.
    pub(super) fn relocating<T>(&self, inode: &Inode, mut operation: impl FnMut(&mut Relocation) -> Result<T>) -> Result<T> {
        let mut relocation = Relocation::default();
        loop {
            let result = operation(&mut relocation);
            let Some(range) = relocation.wanted.take() else {
                return result;
            };
            // Opened before the wider range is closed: nobody waits for somebody who waits for us.
            relocation.closed = None;
            relocation.closed = Some((range, self.coherence().close_range(inode.ino, range, Trigger::Relocation)));
        }
    }

    /// Of file blocks `first..last`, those with another owner must be closed. Changes nothing.
    pub(super) fn require_closed(&self, map: &ExtentMap, first: u64, last: u64, relocation: &mut Relocation) -> Result<()> {
        let shared: Vec<Segment> = map.segments(first, last).into_iter().filter(Segment::may_be_shared).collect();
        let (Some(start), Some(end)) = (shared.first(), shared.last()) else {
            return Ok(());
        };
        relocation.require(Range { start: start.file_block * BLOCK_BYTES, end: end.end() * BLOCK_BYTES })
    }

    /// What was shared in file blocks `first..last` and no longer is becomes the file's own: a flag left there
    /// means another owner.
    pub(super) fn take_own_back(&self, map: &mut ExtentMap, first: u64, last: u64, touched: &mut Touched) {
        for segment in map.segments(first, last).into_iter().filter(Segment::may_be_shared) {
            for (part, shared) in self.parts_by_owners(&segment) {
                if !shared {
                    map.set_flags(part.file_block, part.end(), 0, touched);
                }
            }
        }
    }

    /// A stretch in parts, and whether each has another owner.
    pub(super) fn parts_by_owners(&self, segment: &Segment) -> Vec<(Segment, bool)> {
        let Some(extent) = segment.extent.filter(|_| segment.may_be_shared()) else {
            return vec![(*segment, false)];
        };
        let parts = self.volume.shared_parts(BlockRange::new(extent.device_block, extent.len_blocks));
        let part = |range: BlockRange| Segment {
            file_block: segment.file_block + (range.start - extent.device_block),
            blocks: range.count,
            extent: Some(Extent { device_block: range.start, len_blocks: range.count, ..extent }),
        };
        parts.into_iter().map(|(range, shared)| (part(range), shared)).collect()
    }

    /// Gives the file blocks of its own, with the same content, where `first..last` are shared.
    pub(super) fn unshare(
        &self,
        inode: &Inode,
        content: &mut Content,
        first: u64,
        last: u64,
        change: &mut Change<'_>,
    ) -> Result<()> {
        let map = self.extents(inode, content)?;
        self.require_closed(map, first, last, change.relocation)?;
        self.take_own_back(map, first, last, &mut change.touched);
        for segment in map.segments(first, last).into_iter().filter(Segment::may_be_shared) {
            self.copy_away(inode, map, &segment, change)?;
        }
        Ok(())
    }

    fn copy_away(&self, inode: &Inode, map: &mut ExtentMap, segment: &Segment, change: &mut Change<'_>) -> Result<()> {
        let Some(old) = segment.written() else {
            return Ok(());
        };
        let allocation = self.volume.allocate(AllocRequest { blocks: segment.blocks, near: None })?;
        let removed = map.remove(segment.file_block, segment.end(), &mut change.touched);
        change.txn.free(inode.ino, &removed);
        let mut at = 0;
        for piece in allocation.pieces() {
            let buf = self.read_blocks(old + at, piece.count)?;
            self.write_pieces(vec![Piece { device_block: piece.start, buf }])?;
            let own = Extent { device_block: piece.start, len_blocks: piece.count, flags: 0 };
            map.insert(segment.file_block + at, own, &mut change.touched);
            at += piece.count;
        }
        change.txn.claim(allocation);
        Ok(())
    }

    /// Takes what `first..last` holds off the file.
    pub(super) fn give_up(&self, inode: &Inode, map: &mut ExtentMap, first: u64, last: u64, change: &mut Change<'_>) {
        let removed = map.remove(first, last, &mut change.touched);
        change.txn.free(inode.ino, &removed);
    }
}

impl Segment {
    /// It is flagged as shared: the store knows whether it still is.
    pub(super) fn may_be_shared(&self) -> bool {
        self.extent.is_some_and(|extent| extent.flags & extent_flags::SHARED != 0)
    }
}
