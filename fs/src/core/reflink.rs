//! Cloning: a range of one file becomes a second name for the blocks of another.
//!
//! Only data is shared; holes and what is preallocated in the source are holes in
//! the destination. From then on both files' extents are flagged, and whoever writes
//! first copies (see [`super::cow`]).

use std::sync::Arc;

use peerfs_abi::Trigger;
use peerfs_blockdev::BLOCK_BYTES;
use peerfs_p2p::Range;

use super::cow::{Change, Relocation};
use super::extent_map::{Segment, Touched};
use super::handles::OpenFile;
use super::inode::{Content, Inode, stamp_content};
use super::io::{MAX_FILE_BYTES, block_of, blocks_for, changed_tail};
use super::time::now;
use super::{Core, FsError, Result, set_id};
use crate::store::{BlockRange, Extent, extent_flags};
use crate::types::{Caller, Handle, Ino};

/// Extents cloned in one transaction: a crash may leave the first of several.
const EXTENTS_AT_ONCE: usize = 4096;

/// What to clone, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CloneRange {
    /// Start in the source.
    pub source_offset: u64,
    /// Start in the destination.
    pub destination_offset: u64,
    /// Length; 0 means to the end of the source.
    pub length: u64,
}

/// A range that was found good, under the locks of both files.
struct Plan {
    range: CloneRange,
    /// Size of the destination afterwards.
    new_size: u64,
}

impl Core {
    /// A secret by which [`Core::reflink`] knows this open file, as long as it is open: who has it may read the file.
    pub fn name_source(&self, handle: Handle) -> Result<u64> {
        let open = self.handles.file(handle)?;
        if !open.read {
            return Err(FsError::errno(libc::EBADF));
        }
        self.handles.name(handle, &open)
    }

    /// Makes a range of the destination share the blocks of the named source. Returns the bytes cloned. May wait until
    /// the revocation deadline. The caller has written back the source's cached pages, and drops the destination's
    /// afterwards.
    ///
    /// # Errors
    /// EXDEV: the name is no open file of this mount. EBADF: the destination is not open for writing. EINVAL: not in
    /// whole blocks, or the ranges overlap. ETXTBSY: a pin reaches the source. EFBIG, ENOSPC, EROFS, EIO.
    pub fn reflink(&self, caller: Caller, destination: Handle, source_name: u64, range: CloneRange) -> Result<u64> {
        let target = self.handles.file(destination)?;
        if !target.write {
            return Err(FsError::errno(libc::EBADF));
        }
        let source = self.handles.named(source_name).ok_or(FsError::errno(libc::EXDEV))?;
        self.admit_change()?;
        self.admit_growth()?;
        let clone =
            || self.relocating(&target.inode, |relocation| self.clone_closed(caller, &source, &target, range, relocation));
        let cloned = match clone() {
            Err(error) if error.code() == libc::ENOSPC => {
                self.reclaim();
                clone()
            }
            cloned => cloned,
        };
        self.changed_inode(target.inode.ino, cloned)
    }

    /// The file that a name of [`Core::name_source`] stands for.
    pub fn named_source(&self, source_name: u64) -> Option<Ino> {
        Some(self.handles.named(source_name)?.inode.ino)
    }

    fn clone_closed(
        &self,
        caller: Caller,
        source: &OpenFile,
        target: &OpenFile,
        range: CloneRange,
        relocation: &mut Relocation,
    ) -> Result<u64> {
        let (source, target) = (&source.inode, &target.inode);
        let coherence = self.coherence();
        let plan = check(source, target, range)?;
        let from = whole_blocks(range.source_offset, plan.range.length);
        let to = whole_blocks(range.destination_offset, plan.range.length);
        // A peer's later store into the source must not change the clone.
        let _source_closed = coherence.before_sharing(source.ino, from).ok_or(FsError::errno(libc::ETXTBSY))?;
        let _target_closed = coherence.close_range(target.ino, to, Trigger::Reflink);
        let size = target.size();
        let _tail = changed_tail(size, plan.new_size).map(|tail| coherence.partial_write(target.ino, tail));
        let (old_size, new_size, length) = self.clone_locked(caller, source, target, &plan, relocation)?;
        if new_size != old_size {
            coherence.size_changed(target.ino, old_size, new_size);
        }
        Ok(length)
    }

    /// Returns the destination's size before and after, and the bytes cloned.
    fn clone_locked(
        &self,
        caller: Caller,
        source: &Arc<Inode>,
        target: &Arc<Inode>,
        closed: &Plan,
        relocation: &mut Relocation,
    ) -> Result<(u64, u64, u64)> {
        let mut locked = Locked::new(source, target);
        let plan = check(source, target, closed.range)?;
        let old_size = target.size();
        let mut change = Change::new(relocation);
        let mut of_source = Touched::new();
        let result = self.clone_extents(caller, (source, target), &mut locked, &plan, (&mut change, &mut of_source));
        if result.is_err() {
            if source.ino == target.ino {
                change.touched.append(&mut of_source);
            }
            self.revert(target, locked.target(), &change.touched);
            self.revert(source, locked.source(), &of_source);
        }
        result.map(|()| (old_size, plan.new_size, plan.range.length))
    }

    fn clone_extents(
        &self,
        caller: Caller,
        (source, target): (&Arc<Inode>, &Arc<Inode>),
        locked: &mut Locked<'_>,
        plan: &Plan,
        (change, of_source): (&mut Change<'_>, &mut Touched),
    ) -> Result<()> {
        let old_size = target.size();
        if plan.range.destination_offset > old_size {
            self.zero_tail(target, locked.target(), old_size, change)?;
        }
        let (first, last) = (block_of(plan.range.source_offset), blocks_for(plan.range.source_offset + plan.range.length));
        let segments = self.extents(source, locked.source())?.segments(first, last);
        let shift = block_of(plan.range.destination_offset).wrapping_sub(first);
        for slice in segments.chunks(EXTENTS_AT_ONCE) {
            let end = slice.last().map_or(first, Segment::end);
            self.clone_slice((source, target), locked, slice, shift, (change, of_source))?;
            let cloned_to = end.wrapping_add(shift).saturating_mul(BLOCK_BYTES).min(plan.new_size.max(old_size));
            let map = self.extents(target, locked.target())?;
            change.txn.extents(target.ino, map, &change.touched);
            let blocks = map.blocks();
            set_id::end_unless_root(&mut change.txn, target, caller);
            change.txn.inode(target, |record| {
                record.size = record.size.max(cloned_to);
                record.blocks = blocks;
                stamp_content(record, now());
            });
            self.apply(std::mem::take(&mut change.txn))?;
            change.touched.clear();
            of_source.clear();
        }
        Ok(())
    }

    /// Gives the destination the blocks of some stretches of the source.
    fn clone_slice(
        &self,
        (source, target): (&Arc<Inode>, &Arc<Inode>),
        locked: &mut Locked<'_>,
        segments: &[Segment],
        shift: u64,
        (change, of_source): (&mut Change<'_>, &mut Touched),
    ) -> Result<()> {
        for segment in segments {
            let at = segment.file_block.wrapping_add(shift);
            let map = self.extents(target, locked.target())?;
            self.give_up(target, map, at, at + segment.blocks, change);
            let Some(device_block) = segment.written() else {
                continue;
            };
            let shared = Extent { device_block, len_blocks: segment.blocks, flags: extent_flags::SHARED };
            if !segment.may_be_shared() {
                self.extents(source, locked.source())?.set_flags(segment.file_block, segment.end(), shared.flags, of_source);
            }
            let map = self.extents(target, locked.target())?;
            map.insert(at, shared, &mut change.touched);
            change.txn.share(BlockRange::new(device_block, segment.blocks));
        }
        change.txn.extents(source.ino, self.extents(source, locked.source())?, of_source);
        change.txn.inode(source, |_| ());
        Ok(())
    }
}

/// Whether the range can be cloned, as the files are now.
fn check(source: &Inode, target: &Inode, range: CloneRange) -> Result<Plan> {
    let invalid = || FsError::errno(libc::EINVAL);
    let source_size = source.size();
    let CloneRange { source_offset, destination_offset, length } = range;
    let length = match length {
        0 => source_size.checked_sub(source_offset).ok_or_else(invalid)?,
        length => length,
    };
    let source_end = source_offset.checked_add(length).filter(|end| *end <= source_size).ok_or_else(invalid)?;
    let end = destination_offset.checked_add(length).filter(|end| *end <= MAX_FILE_BYTES);
    let end = end.ok_or(FsError::errno(libc::EFBIG))?;
    let aligned = |offset: u64| offset.is_multiple_of(BLOCK_BYTES);
    // A block that the source ends in is cloned only to where the destination ends too.
    let whole = aligned(source_end) || (source_end == source_size && end >= target.size());
    if !aligned(source_offset) || !aligned(destination_offset) || !whole {
        return Err(invalid());
    }
    if source.ino == target.ino && source_offset < end && destination_offset < source_end {
        return Err(invalid());
    }
    let range = CloneRange { length, ..range };
    Ok(Plan { range, new_size: if length == 0 { target.size() } else { target.size().max(end) } })
}

fn whole_blocks(offset: u64, length: u64) -> Range {
    Range { start: offset, end: offset + length.next_multiple_of(BLOCK_BYTES) }
}

/// The content locks of both files, or of the one that is both.
struct Locked<'a> {
    target: std::sync::RwLockWriteGuard<'a, Content>,
    source: Option<std::sync::RwLockWriteGuard<'a, Content>>,
}

impl<'a> Locked<'a> {
    /// In the order of inode numbers.
    fn new(source: &'a Inode, target: &'a Inode) -> Self {
        if source.ino == target.ino {
            return Locked { target: target.exclude(), source: None };
        }
        if source.ino < target.ino {
            let source = source.exclude();
            return Locked { target: target.exclude(), source: Some(source) };
        }
        let target = target.exclude();
        Locked { source: Some(source.exclude()), target }
    }

    fn target(&mut self) -> &mut Content {
        &mut self.target
    }

    fn source(&mut self) -> &mut Content {
        self.source.as_deref_mut().unwrap_or(&mut *self.target)
    }
}
