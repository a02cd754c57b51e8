//! Owned, page-aligned buffers, optionally a piece of a registered pool.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use crate::pool::PoolPiece;

/// Alignment of every buffer, in bytes.
pub const BUFFER_ALIGN: usize = 4096;

/// An owned buffer aligned to 4096 bytes.
pub struct AlignedBuf {
    ptr: NonNull<u8>,
    len: usize,
    /// The piece of a pool that backs it; `None`: the heap.
    piece: Option<PoolPiece>,
}

// SAFETY: the buffer owns its memory; nothing is tied to the thread.
unsafe impl Send for AlignedBuf {}
// SAFETY: shared access only reads.
unsafe impl Sync for AlignedBuf {}

impl AlignedBuf {
    /// A zeroed buffer of at least `len` bytes, rounded up to 4096.
    pub fn zeroed(len: usize) -> Self {
        let len = len.max(1).next_multiple_of(BUFFER_ALIGN);
        let layout = Self::layout(len);
        // SAFETY: the layout has a non-zero size.
        let ptr = unsafe { alloc_zeroed(layout) };
        let Some(ptr) = NonNull::new(ptr) else { handle_alloc_error(layout) };
        AlignedBuf { ptr, len, piece: None }
    }

    /// The first `len` bytes, rounded up to 4096, of a piece of a pool.
    pub(crate) fn pooled(piece: PoolPiece, len: usize) -> Self {
        let len = len.max(1).next_multiple_of(BUFFER_ALIGN);
        AlignedBuf { ptr: piece.start(len), len, piece: Some(piece) }
    }

    /// Where its memory comes from, if not from the heap.
    pub(crate) fn piece(&self) -> Option<&PoolPiece> {
        self.piece.as_ref()
    }

    fn layout(len: usize) -> Layout {
        Layout::from_size_align(len, BUFFER_ALIGN).expect("buffer length overflows")
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: ptr is valid for len initialised bytes and owned by self.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in deref, and self is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        if self.piece.is_none() {
            // SAFETY: allocated in `zeroed` with the same layout.
            unsafe { dealloc(self.ptr.as_ptr(), Self::layout(self.len)) }
        }
    }
}

impl fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.piece.is_some() { "pool" } else { "heap" };
        write!(f, "AlignedBuf({} bytes, {kind})", self.len)
    }
}
