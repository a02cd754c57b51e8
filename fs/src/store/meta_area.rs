//! The metadata area: a byte-addressed, growing space for the database on
//! extents of the same device.
//!
//! The superblock's chain alone owns the extents. The logical length and what
//! the chain *backs* are two things: the database asks for whole doublings
//! (later 4 GiB at a time) long before it writes to them, and does not begin at
//! the front, so blocks are taken only where a write falls; what is not backed
//! reads as zeros. Growth never calls into the database, which is in
//! mid-transaction then.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, RwLock};

use peerfs_blockdev::{BLOCK_BYTES, BlockDevice, Io, Ticket};

use super::chain::{Chain, Gap};
use super::super_store::SuperblockStore;
use super::superblock::{CHAIN_CAPACITY, Superblock};
use super::{BlockRange, StoreError};
use crate::sync::{lock, read, write};

/// Smallest growth when space allows, in blocks (4 MiB).
const GROWTH_BLOCKS: u64 = 1024;
/// Smallest piece in the middle of a gap when space allows, in blocks (256 KiB).
const ISLAND_BLOCKS: u64 = 64;
/// The area is in at most about so many pieces of that kind.
const ISLANDS: u64 = 64;
/// Most pieces for a growth that is larger than needed.
const SURPLUS_PIECES: usize = 8;
/// Writes under way at one time.
const WRITE_DEPTH: usize = 64;

/// Where the area gets more blocks. Called inside a database transaction: must not use the database.
pub trait AreaAllocator: Send + Sync {
    /// Takes up to `want` blocks, at least `need`, in at most `max_pieces` pieces, the first at
    /// block `near` if possible. `None` when that cannot be had.
    fn take(&self, want: u64, need: u64, max_pieces: usize, near: u64) -> Option<Vec<BlockRange>>;
    /// Gives back blocks that did not become part of the area.
    fn put_back(&self, pieces: &[BlockRange]);
}

/// The area of an open volume.
pub struct MetaArea {
    device: Arc<dyn BlockDevice>,
    superblock: Arc<SuperblockStore>,
    allocator: RwLock<Option<Arc<dyn AreaAllocator>>>,
    layout: RwLock<Layout>,
    /// Held while the layout changes, across the superblock write.
    resizing: Mutex<()>,
    writes: Mutex<Writes>,
    /// Serialises read-modify-write of partial blocks.
    partial: Mutex<()>,
    failure: Mutex<Failure>,
}

#[derive(Debug, Clone)]
struct Layout {
    chain: Chain,
    length: u64,
    /// Backed bytes below this may hold old content above `length`.
    stale_end: u64,
}

#[derive(Default)]
struct Writes {
    under_way: VecDeque<(u64, u64, Ticket)>,
    /// A write failed after its caller had gone on; the next sync reports it.
    deferred: Option<StoreError>,
}

#[derive(Default)]
struct Failure {
    last: Option<StoreError>,
    flush_failed: bool,
}

/// Consecutive device bytes for consecutive area bytes; no device offset: not backed.
struct Segment {
    device_offset: Option<u64>,
    length: usize,
}

impl MetaArea {
    /// The area that the superblock describes.
    pub fn new(device: Arc<dyn BlockDevice>, superblock: Arc<SuperblockStore>) -> Arc<Self> {
        let current = superblock.current();
        let stale_end = current.chain.covered_blocks() * BLOCK_BYTES;
        let layout = Layout { chain: current.chain, length: current.meta_length, stale_end };
        Arc::new(MetaArea {
            device,
            superblock,
            allocator: RwLock::new(None),
            layout: RwLock::new(layout),
            resizing: Mutex::new(()),
            writes: Mutex::default(),
            partial: Mutex::new(()),
            failure: Mutex::default(),
        })
    }

    /// Sets where blocks for growth come from. Without it the area cannot grow.
    pub fn set_allocator(&self, allocator: Arc<dyn AreaAllocator>) {
        *write(&self.allocator) = Some(allocator);
    }

    /// Extents of the area.
    pub fn extents(&self) -> Vec<BlockRange> {
        read(&self.layout).chain.extents()
    }

    /// Blocks in its extents.
    pub fn backed_blocks(&self) -> u64 {
        read(&self.layout).chain.backed_blocks()
    }

    /// Logical length in bytes.
    pub fn length(&self) -> u64 {
        read(&self.layout).length
    }

    /// Why the last access failed, if one did since the last call.
    pub fn take_failure(&self) -> Option<StoreError> {
        lock(&self.failure).last.take()
    }

    /// A flush failed once: nothing more may be built on what the device holds.
    pub fn flush_failed(&self) -> bool {
        lock(&self.failure).flush_failed
    }

    fn remember<T>(&self, result: Result<T, StoreError>) -> io::Result<T> {
        result.map_err(|error| {
            lock(&self.failure).last = Some(error.clone());
            io::Error::other(error)
        })
    }

    /// Reads bytes; what was never written is zero.
    pub fn read_bytes(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.check_range(offset, out.len())?;
        self.remember(self.try_read(offset, out))
    }

    fn try_read(&self, offset: u64, out: &mut [u8]) -> Result<(), StoreError> {
        self.settle(offset, out.len() as u64)?;
        let start = offset - offset % BLOCK_BYTES;
        let end = (offset + out.len() as u64).next_multiple_of(BLOCK_BYTES);
        let mut position = start;
        for segment in self.segments(start, end) {
            let segment_end = position + segment.length as u64;
            let from = position.max(offset);
            let to = segment_end.min(offset + out.len() as u64);
            let target = &mut out[(from - offset) as usize..(to - offset) as usize];
            match segment.device_offset {
                None => target.fill(0),
                Some(device_offset) => {
                    let buf = self.device.buffer(segment.length);
                    let io = Io::Read { offset: device_offset, buf };
                    if let Some(buf) = self.device.submit(io).wait()? {
                        let skip = (from - position) as usize;
                        target.copy_from_slice(&buf[skip..skip + target.len()]);
                    }
                }
            }
            position = segment_end;
        }
        Ok(())
    }

    /// Writes bytes. Complete only after [`MetaArea::sync`], which also reports what failed late.
    pub fn write_bytes(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check_range(offset, data.len())?;
        self.remember(self.try_write(offset, data))
    }

    fn try_write(&self, offset: u64, data: &[u8]) -> Result<(), StoreError> {
        let start = offset - offset % BLOCK_BYTES;
        let end = (offset + data.len() as u64).next_multiple_of(BLOCK_BYTES);
        self.back(start / BLOCK_BYTES, end / BLOCK_BYTES)?;
        if start == offset && end == offset + data.len() as u64 {
            return self.start_writes(start, data);
        }
        let _partial = lock(&self.partial);
        let mut blocks = vec![0; (end - start) as usize];
        self.try_read(start, &mut blocks)?;
        let skip = (offset - start) as usize;
        blocks[skip..skip + data.len()].copy_from_slice(data);
        self.start_writes(start, &blocks)
    }

    /// Starts the writes of whole blocks; waits for the oldest when too many are under way.
    fn start_writes(&self, start: u64, blocks: &[u8]) -> Result<(), StoreError> {
        let mut writes = lock(&self.writes);
        writes.settle(start, blocks.len() as u64);
        if let Some(error) = &writes.deferred {
            return Err(error.clone());
        }
        let mut position = 0;
        for segment in self.segments(start, start + blocks.len() as u64) {
            let Some(device_offset) = segment.device_offset else {
                return Err(StoreError::NoSpace { wanted_blocks: segment.length as u64 / BLOCK_BYTES, free_blocks: 0 });
            };
            let mut buf = self.device.buffer(segment.length);
            buf[..segment.length].copy_from_slice(&blocks[position..position + segment.length]);
            let ticket = self.device.submit(Io::Write { offset: device_offset, buf });
            let from = start + position as u64;
            writes.under_way.push_back((from, from + segment.length as u64, ticket));
            position += segment.length;
        }
        while writes.under_way.len() > WRITE_DEPTH {
            writes.finish_oldest();
        }
        Ok(())
    }

    /// Waits for writes to the range. After a failed write nothing is read or written any more until
    /// the database is opened again: it would find old content where it believes its new one.
    fn settle(&self, start: u64, length: u64) -> Result<(), StoreError> {
        let mut writes = lock(&self.writes);
        writes.settle(start, length);
        writes.deferred.clone().map_or(Ok(()), Err)
    }

    /// Forgets a failed write. Only for opening the database anew: it trusts nothing but the device.
    pub fn start_over(&self) {
        let mut writes = lock(&self.writes);
        writes.settle(0, u64::MAX);
        writes.deferred = None;
    }

    /// Completes all writes and makes them durable.
    pub fn sync(&self) -> io::Result<()> {
        self.remember(self.try_sync())
    }

    fn try_sync(&self) -> Result<(), StoreError> {
        {
            let mut writes = lock(&self.writes);
            while !writes.under_way.is_empty() {
                writes.finish_oldest();
            }
            if let Some(error) = &writes.deferred {
                return Err(error.clone());
            }
        }
        self.flush()
    }

    fn flush(&self) -> Result<(), StoreError> {
        if self.flush_failed() {
            return Err(StoreError::FlushFailed { device: self.device.info().name });
        }
        self.device.flush().map_err(|error| self.note_flush(error.into()))
    }

    fn update_superblock(&self, change: impl FnOnce(&mut Superblock)) -> Result<(), StoreError> {
        self.superblock.update(change).map_err(|error| self.note_flush(error))?;
        Ok(())
    }

    fn note_flush(&self, error: StoreError) -> StoreError {
        if error.is_failed_flush() {
            lock(&self.failure).flush_failed = true;
        }
        error
    }

    /// Sets the logical length; durable when this returns.
    pub fn resize(&self, length: u64) -> io::Result<()> {
        self.remember(self.try_resize(length))
    }

    fn try_resize(&self, length: u64) -> Result<(), StoreError> {
        let _resizing = lock(&self.resizing);
        let old = read(&self.layout).clone();
        self.settle(0, u64::MAX)?;
        let covered = old.chain.covered_blocks() * BLOCK_BYTES;
        let zero_end = length.min(old.stale_end).min(covered);
        if length > old.length && zero_end > old.length {
            self.zero_area(old.length, zero_end)?;
        }
        self.update_superblock(|superblock| superblock.meta_length = length)?;
        let mut layout = write(&self.layout);
        if length < old.length {
            layout.stale_end = layout.stale_end.max(old.length.min(covered));
        } else if layout.stale_end <= length {
            layout.stale_end = 0;
        }
        layout.length = length;
        Ok(())
    }

    fn zero_area(&self, from: u64, to: u64) -> Result<(), StoreError> {
        let whole_from = from.next_multiple_of(BLOCK_BYTES);
        if whole_from > from {
            // Lengths are whole pages in practice; a partial block is kept up to `from`.
            let tail = vec![0; (whole_from.min(to) - from) as usize];
            self.try_write(from, &tail)?;
        }
        let mut position = whole_from;
        for segment in self.segments(whole_from, to.next_multiple_of(BLOCK_BYTES)) {
            if let Some(device_offset) = segment.device_offset {
                self.device.write_zeroes(device_offset, segment.length as u64)?;
            }
            position += segment.length as u64;
        }
        debug_assert!(position >= to);
        self.flush()
    }

    /// Makes the chain back the blocks from `first` up to `end` of the area.
    fn back(&self, first: u64, end: u64) -> Result<(), StoreError> {
        if read(&self.layout).chain.gap_in(first, end).is_none() {
            return Ok(());
        }
        let _resizing = lock(&self.resizing);
        loop {
            let chain = read(&self.layout).chain.clone();
            let Some(gap) = chain.gap_in(first, end) else { return Ok(()) };
            self.fill(chain, gap, (first.max(gap.first), end.min(gap.end)))?;
        }
    }

    /// Backs what is needed of a gap, and more where there is room.
    fn fill(&self, mut chain: Chain, gap: Gap, needed: (u64, u64)) -> Result<(), StoreError> {
        let need = needed.1 - needed.0;
        let no_space = StoreError::NoSpace { wanted_blocks: need, free_blocks: 0 };
        let Some(allocator) = read(&self.allocator).clone() else { return Err(no_space) };
        // A gap may be left on either side.
        let room = CHAIN_CAPACITY.saturating_sub(chain.pieces().len() + 2);
        let wanted = generous(gap, needed, chain.backed_blocks());
        // What is more than needed is not worth many of the chain's pieces, which are all there will ever be.
        let few = room.min(SURPLUS_PIECES);
        let (mut first, mut pieces) = (wanted.0, allocator.take(wanted.1 - wanted.0, need, few, gap.near));
        let got: u64 = pieces.iter().flatten().map(|piece| piece.count).sum();
        if got < wanted.1 - wanted.0 {
            // Not all of what is wanted: then from what is needed on.
            first = needed.0;
            if let Some(surplus) = pieces.take_if(|_| got > gap.end - first) {
                allocator.put_back(&surplus);
            }
            pieces = pieces.or_else(|| allocator.take(need, need, room, gap.near));
        }
        let Some(pieces) = pieces else {
            tracing::debug!(need_blocks = need, at_block = needed.0, "the metadata area cannot grow");
            return Err(no_space);
        };
        if let Err(error) = self.zero_pieces(&pieces) {
            allocator.put_back(&pieces);
            return Err(error);
        }
        chain.back(first, &pieces);
        // Once the superblock may name the pieces they are never given back before the next mount.
        self.update_superblock(|superblock| superblock.chain = chain.clone())?;
        write(&self.layout).chain = chain;
        Ok(())
    }

    fn zero_pieces(&self, pieces: &[BlockRange]) -> Result<(), StoreError> {
        for piece in pieces {
            self.device.write_zeroes(piece.byte_offset(), piece.byte_length())?;
        }
        self.flush()
    }

    fn check_range(&self, offset: u64, length: usize) -> io::Result<()> {
        let end = offset.checked_add(length as u64);
        if end.is_none_or(|end| end > self.length()) {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("{offset}+{length} is beyond the end of the metadata area"),
            ));
        }
        Ok(())
    }

    /// Splits whole blocks `start..end` of the area into device pieces.
    fn segments(&self, start: u64, end: u64) -> Vec<Segment> {
        let stretches = read(&self.layout).chain.stretches(start / BLOCK_BYTES, end / BLOCK_BYTES);
        let segment = |(device_block, count): (Option<u64>, u64)| Segment {
            device_offset: device_block.map(|block| block * BLOCK_BYTES),
            length: (count * BLOCK_BYTES) as usize,
        };
        stretches.into_iter().map(segment).collect()
    }
}

/// What to back of a gap, if space allows, when `needed` is: much where the area grows on, else an island.
fn generous(gap: Gap, needed: (u64, u64), backed: u64) -> (u64, u64) {
    if needed.0 == gap.first {
        let count = (needed.1 - needed.0).max(GROWTH_BLOCKS).max(backed / 2);
        return (gap.first, gap.first.saturating_add(count).min(gap.end));
    }
    let island = ISLAND_BLOCKS.max((backed / ISLANDS).next_power_of_two());
    let first = (needed.0 / island * island).max(gap.first);
    (first, needed.1.next_multiple_of(island).min(gap.end))
}

impl Writes {
    fn finish_oldest(&mut self) {
        if let Some((_, _, ticket)) = self.under_way.pop_front()
            && let Err(error) = ticket.wait()
        {
            self.deferred.get_or_insert(error.into());
        }
    }

    /// Waits until no write under way touches the range.
    fn settle(&mut self, start: u64, length: u64) {
        let end = start.saturating_add(length);
        while self.under_way.iter().any(|(from, to, _)| *from < end && start < *to) {
            self.finish_oldest();
        }
    }
}

impl std::fmt::Debug for MetaArea {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MetaArea").field("layout", &*read(&self.layout)).finish_non_exhaustive()
    }
}
