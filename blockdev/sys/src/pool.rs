//! The pool behind an engine's I/O buffers.
//!
//! It is one memory file, mapped once and, where RLIMIT_MEMLOCK allows,
//! registered with the ring. Being a file it is also what window memory is
//! copied to and from: a fixed read or write moves bytes between a window's
//! registered pages and this file without ever touching a mapping of the window.

use std::fs::File;
use std::io;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use crate::mapping::Mapping;
use crate::memfd::private_memfd;

/// Piece sizes in bytes and how many there are of each, smallest first.
const CLASSES: [(usize, usize); 3] = [(16 << 10, 128), (128 << 10, 32), (1 << 20, 16)];

/// Largest piece, in bytes.
pub(crate) const LARGEST_PIECE_BYTES: usize = CLASSES[2].0;

/// The pool: memory, and which of its pieces are free.
pub(crate) struct BufferPool {
    mapping: Mapping,
    file: Arc<File>,
    free: [Mutex<Vec<usize>>; CLASSES.len()],
}

impl BufferPool {
    pub(crate) fn new() -> io::Result<Arc<Self>> {
        let mut next = 0;
        let free = CLASSES.map(|(bytes, count)| {
            let start = next;
            next += bytes * count;
            Mutex::new((0..count).rev().map(|i| start + i * bytes).collect())
        });
        let file = private_memfd("peerfs-buffers", next as u64)?;
        let mapping = Mapping::shared(&file, next)?;
        Ok(Arc::new(BufferPool { mapping, file: Arc::new(file), free }))
    }

    /// A free piece of at least `len` bytes, if there is one.
    pub(crate) fn take(self: &Arc<Self>, len: usize) -> Option<PoolPiece> {
        let fitting = CLASSES.iter().position(|(bytes, _)| *bytes >= len)?;
        (fitting..CLASSES.len()).find_map(|class| {
            let offset = self.class(class).pop()?;
            Some(PoolPiece { pool: self.clone(), class, offset })
        })
    }

    /// The file whose contents the pool is.
    pub(crate) fn file(&self) -> &Arc<File> {
        &self.file
    }

    pub(crate) fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    fn class(&self, class: usize) -> std::sync::MutexGuard<'_, Vec<usize>> {
        self.free[class].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A piece of the pool, owned exclusively until dropped.
pub(crate) struct PoolPiece {
    pool: Arc<BufferPool>,
    class: usize,
    offset: usize,
}

impl PoolPiece {
    /// Start of its memory.
    ///
    /// # Panics
    /// When the piece is shorter than `len` bytes.
    pub(crate) fn start(&self, len: usize) -> NonNull<u8> {
        assert!(len <= CLASSES[self.class].0, "piece is shorter than its buffer");
        // SAFETY: offset is inside the pool's mapping by construction.
        unsafe { self.pool.mapping.ptr().add(self.offset) }
    }

    /// Byte offset in the pool's file.
    pub(crate) fn file_offset(&self) -> u64 {
        self.offset as u64
    }

    /// Belongs to `pool`.
    pub(crate) fn is_of(&self, pool: &Arc<BufferPool>) -> bool {
        Arc::ptr_eq(&self.pool, pool)
    }
}

impl Drop for PoolPiece {
    fn drop(&mut self) {
        self.pool.class(self.class).push(self.offset);
    }
}
