//! Allocating, punching and zeroing ranges.

use std::sync::Arc;

use peerfs_abi::Trigger;
use peerfs_blockdev::BLOCK_BYTES;
use peerfs_p2p::Range;

use super::attr::end_privileges;
use super::extent_map::{ExtentMap, Segment, Touched};
use super::file_write::{adopt, place};
use super::handles::OpenFile;
use super::inode::{Content, Inode, stamp_content};
use super::io::{MAX_FILE_BYTES, block_of, blocks_for, changed_tail, refuse_shared};
use super::meta::Txn;
use super::time::now;
use super::{Core, FsError, Result};
use crate::store::{Extent, extent_flags};
use crate::types::{Caller, FallocateMode};

impl Core {
    pub(super) fn do_fallocate(
        &self,
        caller: Caller,
        open: &OpenFile,
        mode: FallocateMode,
        offset: u64,
        length: u64,
    ) -> Result<()> {
        if !open.write {
            return Err(FsError::errno(libc::EBADF));
        }
        if length == 0 {
            return Err(FsError::errno(libc::EINVAL));
        }
        let end = offset.checked_add(length).filter(|end| *end <= MAX_FILE_BYTES).ok_or(FsError::errno(libc::EFBIG))?;
        self.admit_change()?;
        let range = Range { start: offset, end };
        match self.fallocate_once(caller, &open.inode, mode, range) {
            Err(error) if error.code() == libc::ENOSPC => {
                self.reclaim();
                self.fallocate_once(caller, &open.inode, mode, range)
            }
            result => result,
        }
    }

    fn fallocate_once(&self, caller: Caller, inode: &Arc<Inode>, mode: FallocateMode, range: Range) -> Result<()> {
        let coherence = self.coherence();
        let whole_blocks = Range { start: block_of(range.start) * BLOCK_BYTES, end: blocks_for(range.end) * BLOCK_BYTES };
        let _closed = match mode {
            FallocateMode::Allocate { .. } => None,
            _ => Some(coherence.close_range(inode.ino, whole_blocks, Trigger::Punch)),
        };
        let size = inode.size();
        let _tail = changed_tail(size, mode.size_after(size, range.end)).map(|tail| coherence.partial_write(inode.ino, tail));
        let mut content = inode.exclude();
        let outcome = self.change_range(caller, inode, &mut content, mode, range);
        if outcome.is_err() {
            self.revert(inode, &mut content);
        }
        drop(content);
        let (old_size, new_size) = outcome?;
        if new_size != old_size {
            coherence.size_changed(inode.ino, old_size, new_size);
        }
        Ok(())
    }

    /// Returns the size before and after.
    fn change_range(
        &self,
        caller: Caller,
        inode: &Arc<Inode>,
        content: &mut Content,
        mode: FallocateMode,
        range: Range,
    ) -> Result<(u64, u64)> {
        let old_size = inode.size();
        self.extents(inode, content)?;
        let mut txn = Txn::new();
        let mut touched = Touched::new();
        match mode {
            FallocateMode::PunchHole => self.punch(content, range, old_size, &mut txn, &mut touched)?,
            FallocateMode::Allocate { .. } => self.preallocate(content, range, &mut txn, &mut touched)?,
            FallocateMode::ZeroRange { .. } => self.zero_range(content, range, old_size, &mut txn, &mut touched)?,
        }
        let new_size = mode.size_after(old_size, range.end);
        let map = self.extents(inode, content)?;
        if new_size > old_size {
            self.zero_tail(map, old_size)?;
        }
        txn.extents(inode.ino, map, &touched);
        let blocks = map.blocks();
        end_privileges(&mut txn, inode, caller);
        txn.inode(inode, |record| {
            record.size = new_size;
            record.blocks = blocks;
            stamp_content(record, now());
        });
        self.apply(txn)?;
        Ok((old_size, new_size))
    }

    /// Gives every hole in the range blocks that read as zeros.
    fn preallocate(&self, content: &mut Content, range: Range, txn: &mut Txn, touched: &mut Touched) -> Result<()> {
        let map = content.extents.get_or_insert_default();
        let segments = map.segments(block_of(range.start), blocks_for(range.end));
        let allocations = self.blocks_for_holes(content, &segments)?;
        let placed: Vec<Segment> = place(&segments, &allocations).into_iter().map(as_unwritten).collect();
        adopt(content.extents.get_or_insert_default(), &placed, touched);
        allocations.into_iter().for_each(|allocation| txn.claim(allocation));
        Ok(())
    }

    /// Frees the whole blocks of the range and zeros its edges.
    fn punch(&self, content: &mut Content, range: Range, size: u64, txn: &mut Txn, touched: &mut Touched) -> Result<()> {
        let map = content.extents.get_or_insert_default();
        let (first, last) = self.zero_edges(map, range, size)?;
        if first < last {
            refuse_shared(&map.segments(first, last))?;
            let removed = map.remove(first, last, touched);
            txn.free(&removed);
        }
        Ok(())
    }

    /// The whole blocks of the range lose their content but not their place; the edges are zeroed.
    fn zero_range(&self, content: &mut Content, range: Range, size: u64, txn: &mut Txn, touched: &mut Touched) -> Result<()> {
        let map = content.extents.get_or_insert_default();
        refuse_shared(&map.segments(block_of(range.start), blocks_for(range.end)))?;
        // First what may fail for lack of space, so that a failure changes nothing.
        self.preallocate(content, range, txn, touched)?;
        let map = content.extents.get_or_insert_default();
        let (first, last) = self.zero_edges(map, range, size)?;
        if first < last {
            map.set_flags(first, last, extent_flags::UNWRITTEN, touched);
        }
        Ok(())
    }

    /// Zeros the partial blocks at both ends. Returns the whole blocks `first..last` between them;
    /// a last block of which only bytes behind the end of the file are left out counts as whole.
    fn zero_edges(&self, map: &ExtentMap, range: Range, size: u64) -> Result<(u64, u64)> {
        let first = blocks_for(range.start);
        let last = match range.end >= size {
            true => blocks_for(range.end),
            false => block_of(range.end),
        };
        // Bytes behind the end of the file are left alone: after a crash they may be inside it again.
        let zero = |start: u64, end: u64| self.zero_in_block(map, start, end.min(size));
        if first > last {
            zero(range.start, range.end)?;
            return Ok((first, last));
        }
        zero(range.start, range.end.min(first * BLOCK_BYTES))?;
        if range.end > last * BLOCK_BYTES {
            zero(last * BLOCK_BYTES, range.end)?;
        }
        Ok((first, last))
    }
}

impl FallocateMode {
    /// Size of a file of `size` bytes after this was done to a range that ends at `end`.
    fn size_after(self, size: u64, end: u64) -> u64 {
        match self {
            FallocateMode::Allocate { keep_size: false } | FallocateMode::ZeroRange { keep_size: false } => size.max(end),
            _ => size,
        }
    }
}

fn as_unwritten(segment: Segment) -> Segment {
    Segment { extent: segment.extent.map(|extent| Extent { flags: extent_flags::UNWRITTEN, ..extent }), ..segment }
}
