//! Allocating, punching and zeroing ranges.

use std::sync::Arc;

use peerfs_abi::Trigger;
use peerfs_blockdev::BLOCK_BYTES;
use peerfs_p2p::Range;

use super::cow::{Change, Relocation};
use super::extent_map::{ExtentMap, Segment};
use super::file_write::{adopt, place};
use super::handles::OpenFile;
use super::inode::{Content, Inode, stamp_content};
use super::io::{MAX_FILE_BYTES, block_of, blocks_for, changed_tail};
use super::time::now;
use super::{Core, FsError, Result, set_id};
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
        let inode = &open.inode;
        let attempt = || self.relocating(inode, |relocation| self.fallocate_once(caller, inode, mode, range, relocation));
        match attempt() {
            Err(error) if error.code() == libc::ENOSPC => {
                self.reclaim();
                attempt()
            }
            result => result,
        }
    }

    fn fallocate_once(
        &self,
        caller: Caller,
        inode: &Arc<Inode>,
        mode: FallocateMode,
        range: Range,
        relocation: &mut Relocation,
    ) -> Result<()> {
        let coherence = self.coherence();
        let whole_blocks = Range { start: block_of(range.start) * BLOCK_BYTES, end: blocks_for(range.end) * BLOCK_BYTES };
        let _closed = match mode {
            FallocateMode::Allocate { .. } => None,
            _ => Some(coherence.close_range(inode.ino, whole_blocks, Trigger::Punch)),
        };
        let size = inode.size();
        let _tail = changed_tail(size, mode.size_after(size, range.end)).map(|tail| coherence.partial_write(inode.ino, tail));
        let mut content = inode.exclude();
        let mut change = Change::new(relocation);
        let outcome = self.change_range(caller, inode, &mut content, (mode, range), &mut change);
        if outcome.is_err() {
            self.revert(inode, &mut content, &change.touched);
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
        (mode, range): (FallocateMode, Range),
        change: &mut Change<'_>,
    ) -> Result<(u64, u64)> {
        let old_size = inode.size();
        self.extents(inode, content)?;
        match mode {
            FallocateMode::PunchHole => self.punch(inode, content, range, change)?,
            FallocateMode::Allocate { .. } => self.preallocate(content, range, change)?,
            FallocateMode::ZeroRange { .. } => self.zero_range(inode, content, range, change)?,
        }
        let new_size = mode.size_after(old_size, range.end);
        if new_size > old_size {
            self.zero_tail(inode, content, old_size, change)?;
        }
        let map = self.extents(inode, content)?;
        let mut txn = std::mem::take(&mut change.txn);
        txn.extents(inode.ino, map, &change.touched);
        let blocks = map.blocks();
        set_id::end_unless_root(&mut txn, inode, caller);
        txn.inode(inode, |record| {
            record.size = new_size;
            record.blocks = blocks;
            stamp_content(record, now());
        });
        self.apply(txn)?;
        Ok((old_size, new_size))
    }

    /// Gives every hole in the range blocks that read as zeros.
    fn preallocate(&self, content: &mut Content, range: Range, change: &mut Change<'_>) -> Result<()> {
        let map = content.extents.get_or_insert_default();
        let segments = map.segments(block_of(range.start), blocks_for(range.end));
        let allocations = self.blocks_for_holes(content, &segments)?;
        let placed: Vec<Segment> = place(&segments, &allocations).into_iter().map(as_unwritten).collect();
        adopt(content.extents.get_or_insert_default(), &placed, &mut change.touched);
        allocations.into_iter().for_each(|allocation| change.txn.claim(allocation));
        Ok(())
    }

    /// Frees the whole blocks of the range and zeros its edges.
    fn punch(&self, inode: &Inode, content: &mut Content, range: Range, change: &mut Change<'_>) -> Result<()> {
        let (first, last) = self.zero_edges(inode, content, range, change)?;
        if first < last {
            self.give_up(inode, self.extents(inode, content)?, first, last, change);
        }
        Ok(())
    }

    /// The whole blocks of the range lose their content but, where nobody else names them, not their place; the edges
    /// are zeroed.
    fn zero_range(&self, inode: &Inode, content: &mut Content, range: Range, change: &mut Change<'_>) -> Result<()> {
        let (first, last) = whole_blocks(range, inode.size());
        if first < last {
            self.leave_to_others(inode, self.extents(inode, content)?, (first, last), change);
        }
        // What may fail for lack of space comes before what changes data.
        self.preallocate(content, range, change)?;
        self.zero_edges(inode, content, range, change)?;
        if first < last {
            self.extents(inode, content)?.set_flags(first, last, extent_flags::UNWRITTEN, &mut change.touched);
        }
        Ok(())
    }

    /// Takes off the file what others name too or, as its mappings were ended, only a pin can still reach.
    fn leave_to_others(&self, inode: &Inode, map: &mut ExtentMap, (first, last): (u64, u64), change: &mut Change<'_>) {
        self.take_own_back(map, first, last, &mut change.touched);
        let pinned = self.coherence().is_mapped(Some(inode.ino));
        for segment in map.segments(first, last) {
            if segment.may_be_shared() || pinned {
                self.give_up(inode, map, segment.file_block, segment.end(), change);
            }
        }
    }

    /// Zeros the partial blocks at both ends. Returns the whole blocks `first..last` between them.
    fn zero_edges(&self, inode: &Inode, content: &mut Content, range: Range, change: &mut Change<'_>) -> Result<(u64, u64)> {
        let size = inode.size();
        let (first, last) = whole_blocks(range, size);
        // Bytes behind the end of the file are left alone: after a crash they may be inside it again.
        let mut zero = |start: u64, end: u64| self.zero_in_block(inode, content, (start, end.min(size)), change);
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

/// The whole blocks `first..last` of a range; a last block of which only bytes behind the end of the file are left
/// out counts as whole.
fn whole_blocks(range: Range, size: u64) -> (u64, u64) {
    let last = match range.end >= size {
        true => blocks_for(range.end),
        false => block_of(range.end),
    };
    (blocks_for(range.start), last)
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
