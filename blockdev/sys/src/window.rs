//! A client's mapping of a grant: memory that the server can take away.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{Ordering, fence};

use crate::address_space::AddressSpace;
use crate::guarded::{self, Fault};

/// An owned shared mapping of a file whose memory may vanish.
///
/// No reference to the memory is ever made. The copying calls answer [`Fault`]
/// where the memory is gone; the volatile ones raise SIGBUS, as an importer's own
/// access would. A fork child does not inherit the memory: every call there answers
/// [`Fault`].
pub struct Window {
    base: NonNull<u8>,
    length: usize,
    writable: bool,
    home: AddressSpace,
}

// SAFETY: a mapping belongs to the process, not to a thread; every access is atomic, volatile or by assembly.
unsafe impl Send for Window {}
// SAFETY: as above.
unsafe impl Sync for Window {}

impl Window {
    /// Maps the first `length` bytes of `file`, which need not stay open. Not inherited over fork.
    ///
    /// # Errors
    /// What mmap(2) and madvise(2) answer; `InvalidInput` for an empty window.
    pub fn map(file: impl AsFd, length: usize, writable: bool) -> io::Result<Window> {
        Window::map_with(file, length, writable, libc::MAP_SHARED)
    }

    /// As [`Window::map`], with these flags of mmap(2), which must ask for a shared mapping at any address.
    pub(crate) fn map_with(file: impl AsFd, length: usize, writable: bool, flags: i32) -> io::Result<Window> {
        guarded::prepare()?;
        let access = match writable {
            true => libc::PROT_READ | libc::PROT_WRITE,
            false => libc::PROT_READ,
        };
        let fd = file.as_fd().as_raw_fd();
        // SAFETY: a new mapping at an address the kernel chooses replaces nothing.
        let base = unsafe { libc::mmap(ptr::null_mut(), length, access, flags & !libc::MAP_FIXED, fd, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let window = Window {
            base: NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?,
            length,
            writable,
            home: AddressSpace::current(),
        };
        // SAFETY: the range was mapped above and is ours.
        match unsafe { libc::madvise(base, length, libc::MADV_DONTFORK) } {
            0 => Ok(window),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Length, bytes.
    pub fn length(&self) -> usize {
        self.length
    }

    /// May it be written?
    pub fn writable(&self) -> bool {
        self.writable
    }

    /// Start address. Using it is up to the caller: an access after a revocation raises SIGBUS,
    /// and the address is meaningless once the window is dropped.
    pub fn as_ptr(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// Copies `target.len()` bytes from `offset` on.
    ///
    /// # Errors
    /// [`Fault`] when they do not all exist (any more); `target` is then undefined.
    pub fn read(&self, offset: usize, target: &mut [u8]) -> Result<(), Fault> {
        let source = self.place(offset, target.len(), false)?;
        // SAFETY: place checked that the range lies in our mapping; Rust memory does not overlap it.
        let result = unsafe { guarded::copy_from(target, source) };
        // Sequence numbers are checked after the copy: keep that order.
        fence(Ordering::SeqCst);
        result
    }

    /// Copies `source` to `offset`.
    ///
    /// # Errors
    /// [`Fault`] when the window is read-only, or the memory does not all exist (any more); any part may have been written.
    pub fn write(&self, offset: usize, source: &[u8]) -> Result<(), Fault> {
        let target = self.place(offset, source.len(), true)?;
        // SAFETY: place checked that the range lies in our writable mapping; Rust memory does not overlap it.
        let result = unsafe { guarded::copy_to(target, source) };
        fence(Ordering::SeqCst);
        result
    }

    /// Loads the word number `index`; the window is an array of u64 that another process stores to. Acquire order.
    ///
    /// # Errors
    /// [`Fault`] when it does not exist (any more).
    pub fn load_word(&self, index: usize) -> Result<u64, Fault> {
        let offset = index.checked_mul(8).ok_or(Fault)?;
        let source = self.place(offset, 8, false)?;
        // SAFETY: in our mapping, and aligned because the mapping is page aligned.
        unsafe { guarded::load(source.cast()) }
    }

    /// Loads a byte as an importer would, unprotected: after a cut this raises SIGBUS.
    ///
    /// # Errors
    /// [`Fault`] outside the window.
    pub fn load_volatile(&self, offset: usize) -> Result<u8, Fault> {
        let source = self.place(offset, 1, false)?;
        // SAFETY: in our mapping; at worst the access raises SIGBUS, which ends the process.
        Ok(unsafe { source.read_volatile() })
    }

    /// Stores an aligned word as an importer would, unprotected: after a cut this raises SIGBUS.
    ///
    /// # Errors
    /// [`Fault`] outside the window, when it is read-only, or when `offset` is not a multiple of 8.
    pub fn store_volatile(&self, offset: usize, value: u64) -> Result<(), Fault> {
        let target = self.place(offset, 8, true)?.cast::<u64>();
        if !target.is_aligned() {
            return Err(Fault);
        }
        // SAFETY: in our writable mapping and aligned; at worst the access raises SIGBUS, which ends the process.
        unsafe { target.write_volatile(value) };
        Ok(())
    }

    pub(crate) fn place(&self, offset: usize, length: usize, write: bool) -> Result<*mut u8, Fault> {
        let inside = offset.checked_add(length).is_some_and(|end| end <= self.length);
        if !inside || (write && !self.writable) || !self.home.is_current() {
            return Err(Fault);
        }
        // SAFETY: offset <= length, so the result stays inside the mapping or one past it.
        Ok(unsafe { self.base.as_ptr().add(offset) })
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // In a fork child the addresses may belong to something else.
        if self.home.is_current() {
            // SAFETY: the range was mapped by `map` and nobody refers to it any more.
            unsafe { libc::munmap(self.base.as_ptr().cast(), self.length) };
        }
    }
}

impl fmt::Debug for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Window({} bytes, writable: {})", self.length, self.writable)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::thread;

    use super::*;

    fn memory(length: u64) -> File {
        let fd = nix::sys::memfd::memfd_create(c"window", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).expect("memfd");
        let file = File::from(fd);
        file.set_len(length).expect("room");
        file
    }

    #[test]
    fn copies_stay_inside_and_respect_the_access() {
        let file = memory(8192);
        let window = Window::map(&file, 8192, true).expect("map");
        let reader = Window::map(&file, 8192, false).expect("map");
        window.write(4090, b"across a page").expect("write");
        let mut back = [0; 13];
        reader.read(4090, &mut back).expect("read");
        assert_eq!(&back, b"across a page");
        assert_eq!(reader.write(0, b"x"), Err(Fault));
        assert_eq!(window.read(8190, &mut back), Err(Fault));
        assert_eq!(window.read(usize::MAX, &mut back), Err(Fault));
        assert_eq!(window.store_volatile(4, 1), Err(Fault));
        window.store_volatile(16, 77).expect("store");
        assert_eq!(reader.load_word(2), Ok(77));
        assert_eq!(reader.load_word(usize::MAX), Err(Fault));
    }

    #[test]
    fn a_concurrent_truncation_is_a_fault_and_never_a_crash() {
        const LENGTH: usize = 1 << 20;
        for round in 0..50 {
            let file = memory(LENGTH as u64);
            let window = Window::map(&file, LENGTH, true).expect("map");
            window.write(0, &[0xAB; LENGTH]).expect("fill");
            thread::scope(|scope| {
                let reader = scope.spawn(|| {
                    let mut buffer = vec![0; LENGTH];
                    while window.read(0, &mut buffer).is_ok() {
                        assert!(buffer.iter().all(|byte| *byte == 0xAB));
                    }
                });
                let writer = scope.spawn(|| {
                    let buffer = vec![0xAB; LENGTH];
                    while window.write(0, &buffer).is_ok() {}
                });
                let loader = scope.spawn(|| while window.load_word(LENGTH / 8 - 1).is_ok() {});
                file.set_len(if round % 2 == 0 { 0 } else { 4096 }).expect("cut");
                for thread in [reader, writer, loader] {
                    thread.join().expect("no panic");
                }
            });
        }
    }
}
