//! A program's own mapping of an ordinary file: the CPU side that a mapping for a
//! device has to agree with.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::{self, NonNull};

use crate::guarded::{self, Fault};

/// Whether stores reach the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// MAP_SHARED.
    Shared,
    /// MAP_PRIVATE.
    Private,
}

/// A mapping of the start of a file, moved through by copies that fail instead of raising SIGBUS.
pub struct FileView {
    base: NonNull<u8>,
    length: usize,
    writable: bool,
}

// SAFETY: a mapping belongs to the process, not to a thread; every access is by assembly or by the kernel.
unsafe impl Send for FileView {}
// SAFETY: as above.
unsafe impl Sync for FileView {}

impl FileView {
    /// Maps the first `length` bytes of `file`, which need not stay open.
    ///
    /// # Errors
    /// What mmap(2) answers: `ENODEV` where the file cannot be mapped so.
    pub fn map(file: impl AsFd, length: usize, sharing: Sharing, writable: bool) -> io::Result<FileView> {
        guarded::prepare()?;
        let access = if writable { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
        let flags = match sharing {
            Sharing::Shared => libc::MAP_SHARED,
            Sharing::Private => libc::MAP_PRIVATE,
        };
        // SAFETY: a new mapping at an address the kernel chooses replaces nothing.
        let base = unsafe { libc::mmap(ptr::null_mut(), length, access, flags, file.as_fd().as_raw_fd(), 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(FileView { base: NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?, length, writable })
    }

    /// Length, bytes.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Loads `target.len()` bytes from `offset` on.
    ///
    /// # Errors
    /// [`Fault`] outside the view or behind the end of the file.
    pub fn read(&self, offset: usize, target: &mut [u8]) -> Result<(), Fault> {
        let source = self.place(offset, target.len())?;
        // SAFETY: place checked that the range lies in our mapping; Rust memory does not overlap it.
        unsafe { guarded::copy_from(target, source) }
    }

    /// Stores `source` from `offset` on.
    ///
    /// # Errors
    /// As [`FileView::read`]; also when the view is read-only.
    pub fn write(&self, offset: usize, source: &[u8]) -> Result<(), Fault> {
        let target = self.place(offset, source.len())?;
        if !self.writable {
            return Err(Fault);
        }
        // SAFETY: place checked that the range lies in our writable mapping; Rust memory does not overlap it.
        unsafe { guarded::copy_to(target, source) }
    }

    /// Writes what was stored to the file (msync with MS_SYNC).
    ///
    /// # Errors
    /// What msync(2) answers.
    pub fn sync(&self) -> io::Result<()> {
        // SAFETY: the range is our mapping; msync changes no memory.
        match unsafe { libc::msync(self.base.as_ptr().cast(), self.length, libc::MS_SYNC) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn place(&self, offset: usize, length: usize) -> Result<*mut u8, Fault> {
        let inside = offset.checked_add(length).is_some_and(|end| end <= self.length);
        if !inside {
            return Err(Fault);
        }
        // SAFETY: offset <= length, so the result stays inside the mapping or one past it.
        Ok(unsafe { self.base.as_ptr().add(offset) })
    }
}

impl Drop for FileView {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `map` and nobody refers to it any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.length) };
    }
}

impl fmt::Debug for FileView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FileView({} bytes, writable: {})", self.length, self.writable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::private_memfd;

    #[test]
    fn shared_stores_reach_the_file_and_private_ones_do_not() {
        let file = private_memfd("view", 8192).expect("memfd");
        let shared = FileView::map(&file, 8192, Sharing::Shared, true).expect("map");
        let private = FileView::map(&file, 8192, Sharing::Private, true).expect("map");
        shared.write(4090, b"across a page").expect("store");
        shared.sync().expect("msync");
        let mut back = [0; 13];
        private.read(4090, &mut back).expect("load");
        assert_eq!(&back, b"across a page");
        private.write(4090, b"only for me!!").expect("store");
        shared.read(4090, &mut back).expect("load");
        assert_eq!(&back, b"across a page");
        assert_eq!(shared.read(8190, &mut back), Err(Fault));
    }

    #[test]
    fn behind_the_end_of_the_file_is_a_fault() {
        let fd = nix::sys::memfd::memfd_create(c"view", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).expect("memfd");
        let file = std::fs::File::from(fd);
        file.set_len(4096).expect("room");
        let view = FileView::map(&file, 8192, Sharing::Shared, true).expect("map");
        assert_eq!(view.write(4095, b"ab"), Err(Fault));
        view.write(4095, b"a").expect("store");
    }
}
