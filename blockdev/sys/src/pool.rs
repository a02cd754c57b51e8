//! The pool behind I/O buffers: of an io_uring engine, or of a driver whose device does DMA.
//!
//! It is one memory file, mapped once. An engine registers it with its ring, where
//! RLIMIT_MEMLOCK allows; a driver maps it for its device. Being a file it is also
//! what window memory is copied to and from: a fixed read or write moves bytes
//! between a window's registered pages and this file without ever touching a
//! mapping of the window.
//!
//! A buffer's owner has a Rust reference to its memory, so a device may use it only
//! while it is *lent* ([`crate::LentBuf`]), when nobody has one. An emulated device is
//! held to that rule; a real one is the driver's responsibility.

use std::fmt;
use std::fs::File;
use std::io;
use std::ptr::NonNull;
use std::sync::Arc;

use crate::access::AccessError;
use crate::buffer::AlignedBuf;
use crate::dma_range::DmaRange;
use crate::lending::Lending;
use crate::mapping::Mapping;
use crate::pieces::{FreePieces, PIECES, POOL_BYTES, Piece};
use crate::shared_memory::SharedMemory;

/// Memory cut into pieces of 16 KiB, 128 KiB and 1 MiB that become buffers.
pub struct BufferPool {
    memory: SharedMemory,
    free: FreePieces,
    lending: [Lending; PIECES],
}

impl BufferPool {
    /// A pool of 22 MiB, whose memory is allocated as it is used.
    ///
    /// # Errors
    /// What memfd_create(2), ftruncate(2) and mmap(2) answer.
    pub fn new() -> io::Result<Arc<Self>> {
        let memory = SharedMemory::zeroed("peerfs-buffers", POOL_BYTES)?;
        Ok(Arc::new(BufferPool { memory, free: FreePieces::all(), lending: [const { Lending::new() }; PIECES] }))
    }

    /// A buffer of `length` bytes rounded up to 4096, if there is a free piece for it. Contents are undefined but initialised.
    pub fn buffer(self: &Arc<Self>, length: usize) -> Option<AlignedBuf> {
        self.take(length).map(|piece| AlignedBuf::pooled(piece, length))
    }

    /// Length, bytes.
    pub fn length(&self) -> u64 {
        self.memory.length()
    }

    /// All of it, to map for a device.
    pub fn dma_range(self: &Arc<Self>) -> DmaRange {
        DmaRange::new(self.memory.mapping().ptr(), self.length(), self.clone())
    }

    /// An emulated device's read of `target.len()` bytes from `offset` of the pool.
    ///
    /// # Errors
    /// `NotLent` unless the range is inside one buffer that is lent at present; `Outside` of the pool.
    pub fn device_read(&self, offset: u64, target: &mut [u8]) -> Result<(), AccessError> {
        let piece = self.lent_piece(offset, target.len())?;
        // SAFETY: while a piece is lent, and `during` holds it so, no reference to its memory exists.
        self.lending[piece.index].during(|| unsafe { self.memory.read(offset, target) }).unwrap_or(Err(not_lent(offset)))
    }

    /// An emulated device's write of `source` to `offset` of the pool.
    ///
    /// # Errors
    /// As [`BufferPool::device_read`].
    pub fn device_write(&self, offset: u64, source: &[u8]) -> Result<(), AccessError> {
        let piece = self.lent_piece(offset, source.len())?;
        // SAFETY: as in `device_read`.
        self.lending[piece.index].during(|| unsafe { self.memory.write(offset, source) }).unwrap_or(Err(not_lent(offset)))
    }

    fn lent_piece(&self, offset: u64, length: usize) -> Result<Piece, AccessError> {
        self.memory.place(offset, length)?;
        let piece = Piece::holding(offset as usize).ok_or(not_lent(offset))?;
        match offset as usize + length <= piece.offset + piece.length() {
            true => Ok(piece),
            false => Err(not_lent(offset)),
        }
    }

    /// A free piece of at least `len` bytes, if there is one.
    pub(crate) fn take(self: &Arc<Self>, len: usize) -> Option<PoolPiece> {
        let place = self.free.take(len)?;
        Some(PoolPiece { pool: self.clone(), place })
    }

    /// The file whose contents the pool is.
    pub(crate) fn file(&self) -> &Arc<File> {
        self.memory.file()
    }

    pub(crate) fn mapping(&self) -> &Mapping {
        self.memory.mapping()
    }
}

fn not_lent(offset: u64) -> AccessError {
    AccessError::NotLent { offset }
}

impl fmt::Debug for BufferPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BufferPool({} bytes)", self.length())
    }
}

/// A piece of the pool, owned exclusively until dropped.
pub(crate) struct PoolPiece {
    pool: Arc<BufferPool>,
    place: Piece,
}

impl PoolPiece {
    /// Start of its memory.
    ///
    /// # Panics
    /// When the piece is shorter than `len` bytes.
    pub(crate) fn start(&self, len: usize) -> NonNull<u8> {
        assert!(len <= self.place.length(), "piece is shorter than its buffer");
        // SAFETY: offset is inside the pool's mapping by construction.
        unsafe { self.pool.mapping().ptr().add(self.place.offset) }
    }

    /// Byte offset in the pool's memory, and in its file.
    pub(crate) fn offset(&self) -> u64 {
        self.place.offset as u64
    }

    /// Belongs to `pool`.
    pub(crate) fn is_of(&self, pool: &Arc<BufferPool>) -> bool {
        Arc::ptr_eq(&self.pool, pool)
    }

    /// Who may use the memory at present.
    pub(crate) fn lending(&self) -> &Lending {
        &self.pool.lending[self.place.index]
    }
}

impl Drop for PoolPiece {
    fn drop(&mut self) {
        self.pool.free.give(self.place);
    }
}
