//! Writing. Data is on the device before the batch that refers to it is applied.
//!
//! Whole blocks that hold data already are overwritten in place with the content
//! lock shared; everything else (new blocks, partial blocks, growth) excludes.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use peerfs_blockdev::{BLOCK_BYTES, IoBuf};
use peerfs_p2p::Range;

use super::cow::{Change, Relocation};
use super::extent_map::{ExtentMap, Segment, Touched};
use super::handles::OpenFile;
use super::inode::{Content, Inode, stamp_content};
use super::io::{MAX_FILE_BYTES, Piece, block_of, blocks_for, changed_tail};
use super::reservation::Want;
use super::time::now;
use super::{Core, FsError, Result, Synchronous, set_id};
use crate::store::{Allocation, Extent};
use crate::types::{Caller, HandleMode, WriteOrigin};

/// Bytes for a place in a file.
#[derive(Clone, Copy)]
struct Load<'a> {
    offset: u64,
    data: &'a [u8],
}

impl Load<'_> {
    fn end(&self) -> u64 {
        self.offset + self.data.len() as u64
    }

    fn is_aligned(&self) -> bool {
        self.offset.is_multiple_of(BLOCK_BYTES) && self.end().is_multiple_of(BLOCK_BYTES)
    }

    fn blocks(&self) -> (u64, u64) {
        (block_of(self.offset), blocks_for(self.end()))
    }

    /// Where blocks are changed in part, its own or the one that a file of `size` bytes ends in.
    fn partly_changed(&self, size: u64) -> Option<Range> {
        let own = (!self.is_aligned()).then_some(Range { start: self.offset, end: self.end() });
        match (own, changed_tail(size, self.end())) {
            (Some(own), Some(tail)) => Some(Range { start: own.start.min(tail.start), ..own }),
            (own, tail) => own.or(tail),
        }
    }
}

impl Core {
    pub(super) fn do_write(&self, caller: Caller, open: &OpenFile, offset: u64, data: &[u8], origin: WriteOrigin) -> Result<u32> {
        let written = match origin.from_page_cache {
            true => self.write_back(caller, open, offset, data, origin),
            false => self.write_once(caller, open, offset, data, origin),
        };
        if origin.from_page_cache && written.is_err() {
            open.inode.lost_write_backs.fetch_add(1, Ordering::SeqCst);
        }
        let written = written?;
        let is_synchronous = origin.synchronous || self.options.synchronous == Synchronous::Everything;
        if is_synchronous && open.mode == HandleMode::Direct {
            self.do_fsync(open, true)?;
        }
        Ok(written)
    }

    /// Pages that the kernel writes back. It looks at the error of the answer only, so less than all of them is one.
    fn write_back(&self, caller: Caller, open: &OpenFile, offset: u64, data: &[u8], origin: WriteOrigin) -> Result<u32> {
        Core::await_buffered_writes(&open.inode, Range::new(offset, data.len() as u64));
        let written = self.write_once(caller, open, offset, data, origin)?;
        if (written as usize) < data.len() { Err(FsError::errno(libc::ENOSPC)) } else { Ok(written) }
    }

    fn write_once(&self, caller: Caller, open: &OpenFile, offset: u64, data: &[u8], origin: WriteOrigin) -> Result<u32> {
        if !open.write && !origin.from_page_cache {
            return Err(FsError::errno(libc::EBADF));
        }
        if data.is_empty() {
            return Ok(0);
        }
        if offset >= MAX_FILE_BYTES {
            return Err(FsError::errno(libc::EFBIG));
        }
        self.admit_change()?;
        let inode = &open.inode;
        let fits = data.len().min((MAX_FILE_BYTES - offset) as usize);
        let load = Load { offset, data: &data[..fits] };
        let range = Range::new(offset, fits as u64);
        let coherence = self.coherence();
        if origin.through_cache || origin.from_page_cache {
            coherence.cached_write(inode.ino, range);
        }
        // Blocks that are read, changed and written back must not change in between.
        let _closed = load.partly_changed(inode.size()).map(|range| coherence.partial_write(inode.ino, range));
        if load.is_aligned() && self.overwrite(inode, load, origin)? {
            return Ok(fits as u32);
        }
        self.write_or_shorten(caller, inode, load, origin)
    }

    /// Writes what there is space for: after a reclaim, half, a quarter, … down to one block. Past the page cache all or
    /// nothing: of a direct write that is answered short the kernel makes EIO.
    fn write_or_shorten(&self, caller: Caller, inode: &Arc<Inode>, load: Load<'_>, origin: WriteOrigin) -> Result<u32> {
        // Who may not keep set-id bits.
        let ending = origin.kill_suid.then_some(caller);
        let mut load = load;
        let mut reclaimed = false;
        loop {
            match self.relocating(inode, |relocation| self.write_excluding(inode, load, ending, relocation)) {
                Ok((old_size, new_size)) => {
                    if new_size != old_size {
                        self.coherence().size_changed(inode.ino, old_size, new_size);
                    }
                    return Ok(load.data.len() as u32);
                }
                Err(error) if error.code() == libc::ENOSPC => {
                    let (first, last) = load.blocks();
                    if !reclaimed {
                        reclaimed = true;
                        self.reclaim();
                        continue;
                    }
                    if last - first < 2 || !origin.through_cache {
                        return Err(error);
                    }
                    let end = (first + (last - first) / 2) * BLOCK_BYTES;
                    load.data = &load.data[..(end - load.offset) as usize];
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Overwrites whole blocks in place. False when the write needs more than that.
    fn overwrite(&self, inode: &Arc<Inode>, load: Load<'_>, origin: WriteOrigin) -> Result<bool> {
        self.with_extents(inode, |map| {
            {
                let attributes = inode.attributes();
                let record = &attributes.record;
                let clears = origin.kill_suid && set_id::is_set(record.mode);
                if load.end() > record.size || clears {
                    return Ok(false);
                }
            }
            let (first, last) = load.blocks();
            let segments = map.segments(first, last);
            if !segments.iter().all(Segment::is_private_data) {
                return Ok(false);
            }
            let pieces = segments
                .iter()
                .filter_map(|segment| {
                    Some(Piece { device_block: segment.written()?, buf: self.filled(segment, load, None, None) })
                })
                .collect();
            self.write_pieces(pieces)?;
            if inode.change_times(|record| stamp_content(record, now())) {
                self.cache.mark_dirty(inode.ino);
            }
            Ok(true)
        })
    }

    /// Any write. Returns the size before and after.
    fn write_excluding(
        &self,
        inode: &Arc<Inode>,
        load: Load<'_>,
        ending: Option<Caller>,
        relocation: &mut Relocation,
    ) -> Result<(u64, u64)> {
        let mut content = inode.exclude();
        let mut change = Change::new(relocation);
        let sizes = self.write_locked(inode, &mut content, load, &mut change);
        let sizes = match sizes {
            Ok((old_size, new_size)) => {
                self.finish_write(inode, &mut content, ending, new_size, &mut change).map(|()| (old_size, new_size))
            }
            Err(error) => Err(error),
        };
        sizes.inspect_err(|_| self.revert(inode, &mut content, &change.touched))
    }

    /// Puts the data on the device and its blocks into the file.
    fn write_locked(
        &self,
        inode: &Arc<Inode>,
        content: &mut Content,
        load: Load<'_>,
        change: &mut Change<'_>,
    ) -> Result<(u64, u64)> {
        let old_size = inode.size();
        let (first, last) = load.blocks();
        self.require_closed(self.extents(inode, content)?, first, last, change.relocation)?;
        if old_size < load.offset && block_of(old_size) < first {
            self.zero_tail(inode, content, old_size, change)?;
        }
        let map = self.extents(inode, content)?;
        self.take_own_back(map, first, last, &mut change.touched);
        let segments = map.segments(first, last);
        let to_fill: Vec<Segment> = segments.iter().map(Segment::unless_shared).collect();
        let allocations = self.blocks_for_holes(content, &to_fill)?;
        let map = self.extents(inode, content)?;
        let placed = place(&to_fill, &allocations);
        self.write_placed(&segments, &placed, load, old_size)?;
        for segment in segments.iter().filter(|segment| segment.may_be_shared()) {
            self.give_up(inode, map, segment.file_block, segment.end(), change);
        }
        adopt(map, &placed, &mut change.touched);
        map.set_flags_of_unwritten(&segments, &mut change.touched);
        allocations.into_iter().for_each(|allocation| change.txn.claim(allocation));
        Ok((old_size, old_size.max(load.end())))
    }

    fn finish_write(
        &self,
        inode: &Arc<Inode>,
        content: &mut Content,
        ending: Option<Caller>,
        new_size: u64,
        change: &mut Change<'_>,
    ) -> Result<()> {
        let mut txn = std::mem::take(&mut change.txn);
        let map = self.extents(inode, content)?;
        txn.extents(inode.ino, map, &change.touched);
        let blocks = map.blocks();
        if let Some(caller) = ending {
            set_id::end(&mut txn, inode, caller);
        }
        txn.inode(inode, |record| {
            record.size = new_size;
            record.blocks = blocks;
            stamp_content(record, now());
        });
        self.apply(txn)
    }

    /// Blocks for all holes among the segments, in their order.
    pub(super) fn blocks_for_holes(&self, content: &mut Content, segments: &[Segment]) -> Result<Vec<Allocation>> {
        let mut taken = Vec::new();
        for (at, segment) in segments.iter().enumerate() {
            if segment.extent.is_some() {
                continue;
            }
            let map = content.extents.get_or_insert_default();
            let before = map.segments(segment.file_block.saturating_sub(1), segment.file_block);
            let near = before.first().and_then(|before| before.extent).map(|extent| extent.device_block + extent.len_blocks);
            let want = Want {
                file_block: segment.file_block,
                blocks: segment.blocks,
                near,
                growing: at + 1 == segments.len() && map.end() == segment.file_block,
            };
            taken.extend(self.take_blocks(content, want)?);
        }
        Ok(taken)
    }

    /// Writes the data into the blocks that the file has and those it is given.
    fn write_placed(&self, segments: &[Segment], placed: &[Segment], load: Load<'_>, old_size: u64) -> Result<()> {
        let (first, last) = load.blocks();
        let head = match load.offset.is_multiple_of(BLOCK_BYTES) {
            true => None,
            false => self.edge(segments.first(), first, old_size)?,
        };
        let partial_tail = !load.end().is_multiple_of(BLOCK_BYTES) && load.end() < old_size;
        let tail = match partial_tail && (last - 1 > first || head.is_none()) {
            true => self.edge(segments.last(), last - 1, old_size)?,
            false => None,
        };
        let existing = segments.iter().filter(|segment| segment.extent.is_some() && !segment.may_be_shared());
        let pieces = existing
            .chain(placed)
            .filter_map(|segment| {
                Some(Piece {
                    device_block: segment.extent?.device_block,
                    buf: self.filled(segment, load, head.as_ref(), tail.as_ref()),
                })
            })
            .collect();
        self.write_pieces(pieces)
    }

    /// The content of a partly written block, if it has any; zeros behind the end of the file.
    fn edge(&self, segment: Option<&Segment>, block: u64, size: u64) -> Result<Option<IoBuf>> {
        let start = block * BLOCK_BYTES;
        let Some((segment, device_block)) = segment.and_then(|s| Some((s, s.written()?))) else {
            return Ok(None);
        };
        if start >= size {
            return Ok(None);
        }
        let mut buf = self.read_blocks(device_block + (block - segment.file_block), 1)?;
        let valid = (size - start).min(BLOCK_BYTES) as usize;
        buf[valid..].fill(0);
        Ok(Some(buf))
    }

    /// A buffer for one stretch: the data, around it the old content or zeros.
    fn filled(&self, segment: &Segment, load: Load<'_>, head: Option<&IoBuf>, tail: Option<&IoBuf>) -> IoBuf {
        let start = segment.file_block * BLOCK_BYTES;
        let length = (segment.blocks * BLOCK_BYTES) as usize;
        let mut buf = self.device.buffer(length);
        let from = load.offset.max(start);
        let to = load.end().min(start + length as u64);
        let (data_start, data_end) = ((from - start) as usize, (to - start) as usize);
        let block = BLOCK_BYTES as usize;
        if data_start > 0 {
            fill_block(&mut buf[..block], head);
        }
        if data_end < length {
            // One block may be both edges: then the first read of it serves both.
            let shared = head.filter(|_| load.blocks().1 - load.blocks().0 == 1);
            if shared.is_none() || data_start == 0 {
                fill_block(&mut buf[length - block..], tail.or(shared));
            }
        }
        let source = (from - load.offset) as usize;
        buf[data_start..data_end].copy_from_slice(&load.data[source..source + (data_end - data_start)]);
        buf
    }
}

fn fill_block(target: &mut [u8], content: Option<&IoBuf>) {
    match content {
        Some(content) => target.copy_from_slice(&content[..target.len()]),
        None => target.fill(0),
    }
}

/// Lays allocated blocks into the holes, in order.
pub(super) fn place(segments: &[Segment], allocations: &[Allocation]) -> Vec<Segment> {
    let mut pieces = allocations.iter().flat_map(|allocation| allocation.pieces().iter().copied());
    let mut piece = pieces.next();
    let mut placed = Vec::new();
    for hole in segments.iter().filter(|segment| segment.extent.is_none()) {
        let mut at = hole.file_block;
        while at < hole.end()
            && let Some(current) = &mut piece
        {
            let blocks = current.count.min(hole.end() - at);
            placed.push(Segment {
                file_block: at,
                blocks,
                extent: Some(Extent { device_block: current.start, len_blocks: blocks, flags: 0 }),
            });
            at += blocks;
            current.start += blocks;
            current.count -= blocks;
            if current.count == 0 {
                piece = pieces.next();
            }
        }
    }
    placed
}

/// Puts placed stretches into the file's extents.
pub(super) fn adopt(map: &mut ExtentMap, placed: &[Segment], touched: &mut Touched) {
    for segment in placed {
        if let Some(extent) = segment.extent {
            map.insert(segment.file_block, extent, touched);
        }
    }
}

impl Segment {
    /// The stretch, as a hole if its blocks have another owner.
    fn unless_shared(&self) -> Segment {
        Segment { extent: self.extent.filter(|_| !self.may_be_shared()), ..*self }
    }
}

impl ExtentMap {
    /// Preallocated stretches among `segments` hold data from now on.
    fn set_flags_of_unwritten(&mut self, segments: &[Segment], touched: &mut Touched) {
        for segment in segments {
            if segment.extent.is_some() && segment.written().is_none() {
                self.set_flags(segment.file_block, segment.end(), 0, touched);
            }
        }
    }
}
