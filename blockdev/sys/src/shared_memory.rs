//! Memory that devices, real or emulated, read and write while we do.
//!
//! It is a memory file, mapped once: shared pages, so a fork never makes the
//! device's pages and ours differ, and the same memory can be file contents for
//! io_uring. Copies go word by word with relaxed atomics, which makes an access
//! that races with another thread's merely unordered.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use crate::PAGE;
use crate::access::{AccessError, check_inside};
use crate::mapping::Mapping;
use crate::memfd::private_memfd;

const WORD: usize = size_of::<u64>();

/// A mapped memory file that nothing can truncate.
pub(crate) struct SharedMemory {
    mapping: Mapping,
    file: Arc<File>,
}

impl SharedMemory {
    /// Zeroed memory of at least `bytes`, rounded up to whole pages.
    pub(crate) fn zeroed(name: &str, bytes: usize) -> io::Result<Self> {
        let length = bytes.max(1).checked_next_multiple_of(PAGE).ok_or(io::ErrorKind::InvalidInput)?;
        let file = private_memfd(name, length as u64)?;
        Ok(SharedMemory { mapping: Mapping::shared(&file, length)?, file: Arc::new(file) })
    }

    pub(crate) fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    /// The file whose contents the memory is.
    pub(crate) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Length, bytes.
    pub(crate) fn length(&self) -> u64 {
        self.mapping.len() as u64
    }

    /// Address of `[offset, offset + length)`, if it is inside.
    pub(crate) fn place(&self, offset: u64, length: usize) -> Result<*mut u8, AccessError> {
        check_inside(offset, length, self.length())?;
        // SAFETY: just checked: the result stays inside the mapping or one past it.
        Ok(unsafe { self.mapping.ptr().as_ptr().add(offset as usize) })
    }

    /// Copies `target.len()` bytes from `offset` on.
    ///
    /// # Safety
    /// No `&mut` to the range exists.
    pub(crate) unsafe fn read(&self, offset: u64, target: &mut [u8]) -> Result<(), AccessError> {
        let source = self.place(offset, target.len())?;
        let (head, body) = split(offset, target.len());
        for (i, byte) in target.iter_mut().enumerate().take(head) {
            // SAFETY: inside the mapping; other accesses to it are atomic, by the caller's promise and this type's.
            *byte = unsafe { AtomicU8::from_ptr(source.add(i)) }.load(Ordering::Relaxed);
        }
        for (i, word) in target[head..head + body].chunks_exact_mut(WORD).enumerate() {
            // SAFETY: as above, and aligned: the mapping is, and `split` ends the head at a multiple of the word.
            let value = unsafe { AtomicU64::from_ptr(source.add(head + i * WORD).cast()) }.load(Ordering::Relaxed);
            word.copy_from_slice(&value.to_ne_bytes());
        }
        for (i, byte) in target.iter_mut().enumerate().skip(head + body) {
            // SAFETY: as for the head.
            *byte = unsafe { AtomicU8::from_ptr(source.add(i)) }.load(Ordering::Relaxed);
        }
        Ok(())
    }

    /// Copies `source` to `offset`.
    ///
    /// # Safety
    /// No reference to the range exists.
    pub(crate) unsafe fn write(&self, offset: u64, source: &[u8]) -> Result<(), AccessError> {
        let target = self.place(offset, source.len())?;
        let (head, body) = split(offset, source.len());
        for (i, byte) in source.iter().enumerate().take(head) {
            // SAFETY: inside the mapping; other accesses to it are atomic, by the caller's promise and this type's.
            unsafe { AtomicU8::from_ptr(target.add(i)) }.store(*byte, Ordering::Relaxed);
        }
        for (i, word) in source[head..head + body].chunks_exact(WORD).enumerate() {
            let value = u64::from_ne_bytes(word.try_into().expect("chunks of a word"));
            // SAFETY: as above, and aligned: the mapping is, and `split` ends the head at a multiple of the word.
            unsafe { AtomicU64::from_ptr(target.add(head + i * WORD).cast()) }.store(value, Ordering::Relaxed);
        }
        for (i, byte) in source.iter().enumerate().skip(head + body) {
            // SAFETY: as for the head.
            unsafe { AtomicU8::from_ptr(target.add(i)) }.store(*byte, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// Bytes before the first aligned word, and bytes in whole words after them.
pub(crate) fn split(offset: u64, length: usize) -> (usize, usize) {
    let head = (offset.wrapping_neg() as usize % WORD).min(length);
    (head, (length - head) / WORD * WORD)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_splits_into_bytes_words_bytes() {
        assert_eq!(split(0, 24), (0, 24));
        assert_eq!(split(3, 24), (5, 16));
        assert_eq!(split(3, 4), (4, 0));
        assert_eq!(split(8, 0), (0, 0));
    }
}
