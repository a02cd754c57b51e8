//! The mapped part of a BAR.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};

use crate::access::AccessError;
use crate::address_space::AddressSpace;
use crate::guarded::Fault;
use crate::mmio;
use crate::shared_memory::split;

/// An owned, uncached mapping of `[offset, offset + length)` of a BAR. Not inherited over fork: a child must not keep the device open.
pub(super) struct Area {
    base: NonNull<u8>,
    offset: u64,
    length: usize,
    home: AddressSpace,
}

// SAFETY: a mapping belongs to the process, not to a thread; every access is a guarded or volatile one.
unsafe impl Send for Area {}
// SAFETY: as above.
unsafe impl Sync for Area {}

impl Area {
    /// Maps `[offset, offset + length)` of the BAR that begins at `start` of `file`.
    pub(super) fn map(file: &File, start: u64, offset: u64, length: u64) -> io::Result<Area> {
        let too_big = |_| io::Error::from(io::ErrorKind::InvalidInput);
        let length = usize::try_from(length).map_err(too_big)?;
        let at = start.checked_add(offset).ok_or(io::ErrorKind::InvalidInput)?;
        let at = libc::off_t::try_from(at).map_err(too_big)?;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address the kernel chooses replaces nothing.
        let base = unsafe { libc::mmap(ptr::null_mut(), length, access, libc::MAP_SHARED, file.as_raw_fd(), at) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base_bytes = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        let area = Area { base: base_bytes, offset, length, home: AddressSpace::current() };
        // SAFETY: the range was mapped above and is ours.
        match unsafe { libc::madvise(base, length, libc::MADV_DONTFORK) } {
            0 => Ok(area),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// The device loses the mapping; an access finds it gone from now on.
    pub(super) fn let_go(&self, nothing: &File) -> io::Result<()> {
        if !self.home.is_current() {
            return Ok(());
        }
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_FIXED;
        let base = self.base.as_ptr().cast();
        // SAFETY: the range is our own mapping, to which there are no references; one of an empty file takes its place, of
        // which every access raises the SIGBUS that accesses are guarded against.
        let put = unsafe { libc::mmap(base, self.length, access, flags, nothing.as_raw_fd(), 0) };
        if put == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    pub(super) fn length(&self) -> u64 {
        self.length as u64
    }

    /// Holds `[offset, offset + length)` of the BAR.
    pub(super) fn holds(&self, offset: u64, length: usize) -> bool {
        let inside = |from: u64| from.checked_add(length as u64).is_some_and(|end| end <= self.length());
        offset.checked_sub(self.offset).is_some_and(inside)
    }

    /// Address of the byte at `offset` of the BAR, which the area holds.
    pub(super) fn address(&self, offset: u64) -> Option<NonNull<u8>> {
        let place = self.place(offset, 0).ok()?;
        NonNull::new(place)
    }

    pub(super) fn load_u32(&self, offset: u64) -> Result<u32, AccessError> {
        let source = self.word(offset, 4)?;
        // SAFETY: `word` checked that the aligned word lies in our mapping.
        unsafe { mmio::load32(source.cast()) }.map_err(gone)
    }

    pub(super) fn load_u64(&self, offset: u64) -> Result<u64, AccessError> {
        let source = self.word(offset, 8)?;
        // SAFETY: `word` checked that the aligned word lies in our mapping.
        unsafe { mmio::load64(source.cast()) }.map_err(gone)
    }

    pub(super) fn store_u32(&self, offset: u64, value: u32) -> Result<(), AccessError> {
        let target = self.word(offset, 4)?;
        // SAFETY: `word` checked that the aligned word lies in our writable mapping.
        unsafe { mmio::store32(target.cast(), value) }.map_err(gone)
    }

    pub(super) fn store_u64(&self, offset: u64, value: u64) -> Result<(), AccessError> {
        let target = self.word(offset, 8)?;
        // SAFETY: `word` checked that the aligned word lies in our writable mapping.
        unsafe { mmio::store64(target.cast(), value) }.map_err(gone)
    }

    /// Copies out of the device: bytes up to the first aligned word, words, the remaining bytes.
    pub(super) fn read(&self, offset: u64, target: &mut [u8]) -> Result<(), AccessError> {
        let source = self.place(offset, target.len())?;
        let (head, body) = split(offset, target.len());
        let to = target.as_mut_ptr();
        // SAFETY: `place` checked the device's side; the offsets stay inside both; Rust memory does not overlap our mapping.
        unsafe {
            mmio::copy_bytes(to, source, head).map_err(gone)?;
            mmio::copy_words(to.add(head), source.add(head), body / 8).map_err(gone)?;
            mmio::copy_bytes(to.add(head + body), source.add(head + body), target.len() - head - body).map_err(gone)
        }
    }

    /// Copies to the device, in the same steps.
    pub(super) fn write(&self, offset: u64, source: &[u8]) -> Result<(), AccessError> {
        let target = self.place(offset, source.len())?;
        let (head, body) = split(offset, source.len());
        let from = source.as_ptr();
        // SAFETY: as in `read`, the other way round.
        unsafe {
            mmio::copy_bytes(target, from, head).map_err(gone)?;
            mmio::copy_words(target.add(head), from.add(head), body / 8).map_err(gone)?;
            mmio::copy_bytes(target.add(head + body), from.add(head + body), source.len() - head - body).map_err(gone)
        }
    }

    fn word(&self, offset: u64, width: usize) -> Result<*mut u8, AccessError> {
        match self.place(offset, width)? {
            word if word.addr().is_multiple_of(width) => Ok(word),
            _ => Err(AccessError::Misaligned { offset, width: width as u64 }),
        }
    }

    fn place(&self, offset: u64, length: usize) -> Result<*mut u8, AccessError> {
        if !self.holds(offset, length) {
            return Err(AccessError::Outside { offset, length: length as u64, size: self.offset + self.length() });
        }
        if !self.home.is_current() {
            return Err(AccessError::Gone);
        }
        // SAFETY: just checked: the result stays inside the mapping or one past it.
        Ok(unsafe { self.base.as_ptr().add((offset - self.offset) as usize) })
    }
}

fn gone(_: Fault) -> AccessError {
    AccessError::Gone
}

impl Drop for Area {
    fn drop(&mut self) {
        // In a fork child the addresses may belong to something else.
        if self.home.is_current() {
            // SAFETY: the range was mapped by `map` and nobody refers to it any more.
            unsafe { libc::munmap(self.base.as_ptr().cast(), self.length) };
        }
    }
}
