//! Mappings of memory that keeps its content without power.

use std::io;
use std::os::fd::AsFd;

use crate::flush;
use crate::guarded::Fault;
use crate::window::Window;

/// A file on a DAX filesystem, a device-dax device, or, for want of those, any file, as shared memory of this process.
///
/// No reference to the memory is ever made. Where it is gone (a media error, a truncated file, no room for a block of a
/// sparse one) a call answers [`Fault`] instead of raising SIGBUS. Not inherited over fork.
#[derive(Debug)]
pub struct PersistentMapping {
    window: Window,
    is_dax: bool,
}

impl PersistentMapping {
    /// Maps persistent memory itself (MAP_SYNC): a write is durable when [`PersistentMapping::write`] returns.
    ///
    /// # Errors
    /// `Unsupported` where there is a page cache between the file and its medium (EOPNOTSUPP, EINVAL), or where this
    /// build cannot flush the processor's caches; otherwise what mmap(2) answers.
    pub fn map_dax(file: impl AsFd, length: usize, writable: bool) -> io::Result<PersistentMapping> {
        if !flush::CAN_FLUSH {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "caches can be flushed on x86_64 only"));
        }
        let flags = libc::MAP_SHARED_VALIDATE | libc::MAP_SYNC;
        let window = Window::map_with(file, length, writable, flags).map_err(|err| match err.raw_os_error() {
            Some(libc::EOPNOTSUPP | libc::EINVAL) => io::Error::new(io::ErrorKind::Unsupported, err),
            _ => err,
        })?;
        Ok(PersistentMapping { window, is_dax: true })
    }

    /// Maps the page cache of any file: a write is durable after fdatasync(2) of the file.
    ///
    /// # Errors
    /// What mmap(2) answers.
    pub fn map_cached(file: impl AsFd, length: usize, writable: bool) -> io::Result<PersistentMapping> {
        Ok(PersistentMapping { window: Window::map(file, length, writable)?, is_dax: false })
    }

    /// Length, bytes.
    pub fn length(&self) -> usize {
        self.window.length()
    }

    /// It is persistent memory itself ([`PersistentMapping::map_dax`]).
    pub fn is_dax(&self) -> bool {
        self.is_dax
    }

    /// Copies `target.len()` bytes from `offset` on.
    ///
    /// # Errors
    /// [`Fault`] when they do not all exist (any more); `target` is then undefined.
    pub fn read(&self, offset: usize, target: &mut [u8]) -> Result<(), Fault> {
        self.window.read(offset, target)
    }

    /// Copies `source` to `offset`, and out of the processor's caches where that makes it durable.
    ///
    /// # Errors
    /// [`Fault`] when the mapping is read-only, or the memory does not all exist (any more); any part may have been written.
    pub fn write(&self, offset: usize, source: &[u8]) -> Result<(), Fault> {
        self.window.write(offset, source)?;
        self.persist(offset, source.len())
    }

    /// What anybody has stored there so far leaves the processor's caches; nothing to do where that is not what makes it durable.
    ///
    /// # Errors
    /// [`Fault`] as for [`PersistentMapping::read`].
    pub fn persist(&self, offset: usize, length: usize) -> Result<(), Fault> {
        if !self.is_dax {
            return Ok(());
        }
        let start = self.window.place(offset, length, false)?;
        // SAFETY: place checked that the range lies in our mapping.
        unsafe { flush::to_memory(start, length) }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn file(length: u64) -> File {
        let file = tempfile::tempfile().expect("a file");
        file.set_len(length).expect("room");
        file
    }

    /// Flushes as if the file were persistent memory: the instructions work on any memory.
    fn flushing(file: &File, length: usize) -> PersistentMapping {
        PersistentMapping { is_dax: flush::CAN_FLUSH, ..PersistentMapping::map_cached(file, length, true).expect("map") }
    }

    #[test]
    fn what_is_written_is_read() {
        let file = file(8192);
        let mapping = flushing(&file, 8192);
        mapping.write(4090, b"across a page").expect("write");
        let mut back = [0; 13];
        mapping.read(4090, &mut back).expect("read");
        assert_eq!(&back, b"across a page");
        assert_eq!(mapping.persist(8190, 3), Err(Fault));
        let reader = PersistentMapping::map_cached(&file, 8192, false).expect("map");
        assert_eq!(reader.write(0, b"x"), Err(Fault));
        assert_eq!(reader.persist(0, 8192), Ok(()));
    }

    #[test]
    fn memory_that_is_gone_is_a_fault_for_copies_and_flushes() {
        let file = file(16384);
        let mapping = flushing(&file, 16384);
        mapping.write(0, &[7; 16384]).expect("write");
        file.set_len(4096).expect("truncate");
        assert_eq!(mapping.write(8192, &[1; 64]), Err(Fault));
        assert_eq!(mapping.read(4000, &mut [0; 200]), Err(Fault));
        // A processor faults here; an emulator may take the instruction for nothing. Neither may end the process.
        let _fault_or_nothing = mapping.persist(0, 16384);
        assert_eq!(mapping.write(0, &[2; 4096]), Ok(()));
    }

    #[test]
    fn a_file_behind_a_page_cache_is_no_persistent_memory() {
        // A memory file never is, wherever the tests run.
        let file = crate::private_memfd("cached", 4096).expect("memfd");
        let refused = PersistentMapping::map_dax(&file, 4096, true).expect_err("no DAX");
        assert_eq!(refused.kind(), io::ErrorKind::Unsupported, "{refused}");
    }
}
