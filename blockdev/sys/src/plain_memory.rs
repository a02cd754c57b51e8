//! The yardstick for mapped reads: memory of a memfd that nobody can take away.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::mapping::Mapping;
use crate::private_memfd;

/// A mapped memfd, copied from with plain memcpy(3).
pub struct PlainMemory {
    mapping: Mapping,
    _file: File,
}

impl PlainMemory {
    /// Memory that holds `length` bytes, all of them present.
    ///
    /// # Errors
    /// What memfd_create(2), write(2) and mmap(2) answer.
    pub fn filled(length: usize, byte: u8) -> io::Result<PlainMemory> {
        let file = private_memfd("peerfs-yardstick", length as u64)?;
        let chunk = vec![byte; length.min(1 << 20)];
        let mut at = 0;
        while at < length {
            let piece = chunk.len().min(length - at);
            file.write_all_at(&chunk[..piece], at as u64)?;
            at += piece;
        }
        Ok(PlainMemory { mapping: Mapping::shared(&file, length)?, _file: file })
    }

    /// Copies from `offset` on; `None` when the range leaves the memory.
    pub fn copy_to(&self, offset: usize, target: &mut [u8]) -> Option<()> {
        let end = offset.checked_add(target.len())?;
        if end > self.mapping.len() {
            return None;
        }
        // SAFETY: the source lies in our mapping of a memfd that is sealed against shrinking; Rust memory does not overlap it.
        unsafe { std::ptr::copy_nonoverlapping(self.mapping.ptr().as_ptr().add(offset), target.as_mut_ptr(), target.len()) };
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_stay_inside() {
        let memory = PlainMemory::filled((1 << 20) + 5, 7).expect("memory");
        let mut target = [0; 8];
        assert_eq!(memory.copy_to((1 << 20) - 3, &mut target), Some(()));
        assert_eq!(target, [7; 8]);
        assert_eq!(memory.copy_to((1 << 20) - 2, &mut target), None);
        assert_eq!(memory.copy_to(usize::MAX, &mut target), None);
    }
}
