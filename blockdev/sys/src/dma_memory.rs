//! Memory for what a driver and its device write at the same time: queues,
//! PRP lists, identify pages.
//!
//! It needs no VFIO: an emulated controller in a test shares it through the same
//! `Arc` that a [`crate::VfioContainer`] maps for a real one. No reference to it is
//! ever made; ordering comes from the word accesses: what was written before a
//! `store` is seen by whoever `load`s that value.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use crate::access::{AccessError, check_word};
use crate::dma_range::DmaRange;
use crate::shared_memory::SharedMemory;

/// Page-aligned memory that a device may read and write at any time.
pub struct DmaMemory {
    memory: SharedMemory,
}

/// A load with Acquire and a store with Release order, for one width of word.
macro_rules! word {
    ($load:ident, $store:ident, $type:ty, $atomic:ty) => {
        /// Loads the word at `offset` (bytes) in the host's byte order. Acquire.
        ///
        /// # Errors
        /// Outside the memory, or not naturally aligned.
        pub fn $load(&self, offset: u64) -> Result<$type, AccessError> {
            let word = self.word(offset, size_of::<$type>())?;
            // SAFETY: `word` checked range and alignment; all access to this memory is atomic.
            Ok(unsafe { <$atomic>::from_ptr(word.cast()) }.load(Ordering::Acquire))
        }

        /// Stores the word at `offset` (bytes) in the host's byte order. Release.
        ///
        /// # Errors
        /// Outside the memory, or not naturally aligned.
        pub fn $store(&self, offset: u64, value: $type) -> Result<(), AccessError> {
            let word = self.word(offset, size_of::<$type>())?;
            // SAFETY: `word` checked range and alignment; all access to this memory is atomic.
            unsafe { <$atomic>::from_ptr(word.cast()) }.store(value, Ordering::Release);
            Ok(())
        }
    };
}

impl DmaMemory {
    /// Zeroed memory of at least `bytes`, rounded up to 4096.
    ///
    /// # Errors
    /// What memfd_create(2), ftruncate(2) and mmap(2) answer.
    pub fn zeroed(bytes: usize) -> io::Result<Arc<Self>> {
        Ok(Arc::new(DmaMemory { memory: SharedMemory::zeroed("peerfs-dma", bytes)? }))
    }

    /// Length, bytes.
    pub fn length(&self) -> u64 {
        self.memory.length()
    }

    /// Copies `target.len()` bytes from `offset` on. In no particular order: load a word first.
    ///
    /// # Errors
    /// Outside the memory; then nothing was copied.
    pub fn read(&self, offset: u64, target: &mut [u8]) -> Result<(), AccessError> {
        // SAFETY: no reference to this memory is ever made.
        unsafe { self.memory.read(offset, target) }
    }

    /// Copies `source` to `offset`. In no particular order: store a word, or ring a doorbell, afterwards.
    ///
    /// # Errors
    /// Outside the memory; then nothing was copied.
    pub fn write(&self, offset: u64, source: &[u8]) -> Result<(), AccessError> {
        // SAFETY: no reference to this memory is ever made.
        unsafe { self.memory.write(offset, source) }
    }

    word!(load_u16, store_u16, u16, AtomicU16);
    word!(load_u32, store_u32, u32, AtomicU32);
    word!(load_u64, store_u64, u64, AtomicU64);

    /// All of it, to map for a device.
    pub fn dma_range(self: &Arc<Self>) -> DmaRange {
        DmaRange::new(self.memory.mapping().ptr(), self.length(), self.clone())
    }

    fn word(&self, offset: u64, width: usize) -> Result<*mut u8, AccessError> {
        check_word(offset, width, self.length())?;
        self.memory.place(offset, width)
    }
}

impl fmt::Debug for DmaMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DmaMemory({} bytes)", self.length())
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn copies_at_any_offset_and_length_come_back() {
        let memory = DmaMemory::zeroed(5000).expect("memory");
        assert_eq!(memory.length(), 8192);
        let pattern: Vec<u8> = (1..=40).collect();
        for offset in 0..9 {
            for length in 0..pattern.len() {
                memory.write(offset, &[0; 64]).expect("clear");
                memory.write(offset, &pattern[..length]).expect("write");
                let mut back = vec![0xFF; length + 1];
                memory.read(offset, &mut back).expect("read");
                assert_eq!((&back[..length], back[length]), (&pattern[..length], 0));
            }
        }
    }

    #[test]
    fn nothing_outside_or_misaligned_is_touched() {
        let memory = DmaMemory::zeroed(4096).expect("memory");
        let outside = AccessError::Outside { offset: 4090, length: 8, size: 4096 };
        assert_eq!(memory.read(4090, &mut [0; 8]), Err(outside));
        assert_eq!(memory.write(4090, &[1; 8]), Err(outside));
        assert_eq!(memory.load_u64(4088), Ok(0));
        assert!(memory.read(u64::MAX, &mut [0; 2]).is_err());
        assert_eq!(memory.load_u32(2), Err(AccessError::Misaligned { offset: 2, width: 4 }));
        assert_eq!(memory.store_u16(4096, 1), Err(AccessError::Outside { offset: 4096, length: 2, size: 4096 }));
    }

    #[test]
    fn words_have_the_hosts_byte_order() {
        let memory = DmaMemory::zeroed(4096).expect("memory");
        memory.store_u64(8, 0x0102_0304_0506_0708).expect("store");
        memory.store_u16(16, 0x1234).expect("store");
        let mut bytes = [0; 10];
        memory.read(8, &mut bytes).expect("read");
        assert_eq!(bytes[..8], 0x0102_0304_0506_0708_u64.to_ne_bytes());
        assert_eq!(bytes[8..], 0x1234_u16.to_ne_bytes());
    }

    #[test]
    fn what_was_written_before_a_store_is_seen_after_its_load() {
        let memory = DmaMemory::zeroed(4096).expect("memory");
        thread::scope(|scope| {
            scope.spawn(|| {
                for round in 1..=2000_u32 {
                    while memory.load_u32(4).expect("load") != round - 1 {
                        thread::yield_now();
                    }
                    memory.write(64, &[round as u8; 60]).expect("payload");
                    memory.store_u32(0, round).expect("publish");
                }
            });
            for round in 1..=2000_u32 {
                while memory.load_u32(0).expect("load") != round {
                    thread::yield_now();
                }
                let mut payload = [0; 60];
                memory.read(64, &mut payload).expect("payload");
                assert_eq!(payload, [round as u8; 60]);
                memory.store_u32(4, round).expect("acknowledge");
            }
        });
    }
}
