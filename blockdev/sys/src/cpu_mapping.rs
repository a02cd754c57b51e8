//! A program's own mapping of a file that it may also cut up, move, protect and
//! replace: what munmap(2), mremap(2), mprotect(2) and MAP_FIXED do to a mapping that
//! a device shares.
//!
//! The object knows which of its addresses are still its own, so that none of this
//! can touch memory of anybody else. It is read and written by the kernel on our
//! behalf, which answers EFAULT where an access of our own would raise a signal.

use std::fmt;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;

use crate::address_space::AddressSpace;
use crate::guarded::Fault;
use crate::reservation::Reservation;
use crate::{PAGE, Sharing};

/// What the processor may do with a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protection {
    /// PROT_NONE.
    None,
    /// PROT_READ.
    Read,
    /// PROT_READ and PROT_WRITE.
    ReadWrite,
}

/// An owned mapping of a range of a file. Not inherited over fork.
pub struct CpuMapping {
    base: usize,
    length: usize,
    /// Parts that were unmapped and are no longer ours, as offsets.
    holes: Vec<Range<usize>>,
    home: AddressSpace,
}

impl CpuMapping {
    /// Maps `length` bytes of `file` from `offset` on, where the kernel likes. The file need not stay open.
    ///
    /// # Errors
    /// What mmap(2) and madvise(2) answer.
    pub fn map(file: impl AsFd, offset: u64, length: usize, sharing: Sharing, writable: bool) -> io::Result<CpuMapping> {
        // SAFETY: without MAP_FIXED a new mapping replaces nothing.
        let base = unsafe { map_at(0, length, protection(writable), sharing_flag(sharing), &file, offset) }?;
        CpuMapping::own(base, length)
    }

    /// Maps a file, shared, at the addresses of a reservation, all of which it takes over.
    ///
    /// # Errors
    /// As [`CpuMapping::map`]; the reservation is lost then.
    pub fn map_in(place: Reservation, file: impl AsFd, offset: u64, writable: bool) -> io::Result<CpuMapping> {
        let (address, length) = (place.address(), place.length());
        let flags = libc::MAP_SHARED | libc::MAP_FIXED;
        // SAFETY: the range is the reservation's own, and no reference to its memory exists.
        unsafe { map_at(address, length, protection(writable), flags, &file, offset) }?;
        std::mem::forget(place);
        CpuMapping::own(address, length)
    }

    fn own(base: usize, length: usize) -> io::Result<CpuMapping> {
        let mapping = CpuMapping { base, length: pages(length), holes: Vec::new(), home: AddressSpace::current() };
        // SAFETY: the range is our mapping; the advice changes no memory.
        check(unsafe { libc::madvise(base as *mut _, mapping.length, libc::MADV_DONTFORK) })?;
        Ok(mapping)
    }

    /// Address of the first byte.
    pub fn address(&self) -> usize {
        self.base
    }

    /// Length, bytes, in whole pages.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Loads bytes from `offset` on.
    ///
    /// # Errors
    /// [`Fault`] where nothing is mapped, it may not be read, or the file has ended.
    pub fn read(&self, offset: usize, target: &mut [u8]) -> Result<(), Fault> {
        let from = self.place(offset, target.len())?;
        read_own_memory(from, target)
    }

    /// Stores bytes from `offset` on.
    ///
    /// # Errors
    /// As [`CpuMapping::read`]; also where it may not be written.
    pub fn write(&self, offset: usize, source: &[u8]) -> Result<(), Fault> {
        let to = self.place(offset, source.len())?;
        let local = libc::iovec { iov_base: source.as_ptr().cast_mut().cast(), iov_len: source.len() };
        let remote = libc::iovec { iov_base: to as *mut _, iov_len: source.len() };
        // SAFETY: place checked that the target is our own mapping, to which no reference exists; the kernel checks the rest.
        let moved = unsafe { libc::process_vm_writev(libc::getpid(), &local, 1, &remote, 1, 0) };
        if usize::try_from(moved) == Ok(source.len()) { Ok(()) } else { Err(Fault) }
    }

    /// munmap(2) of a part, in whole pages; that part is no longer ours.
    ///
    /// # Errors
    /// What munmap(2) answers; `InvalidInput` outside the mapping or within a page.
    pub fn unmap(&mut self, range: Range<usize>) -> io::Result<()> {
        let at = self.pages(&range)?;
        // SAFETY: the range is our own mapping, and no reference to its memory exists.
        check(unsafe { libc::munmap(at as *mut _, range.len()) })?;
        self.holes.push(range);
        Ok(())
    }

    /// mremap(2) of the whole mapping to a new length; it may move.
    ///
    /// # Errors
    /// What mremap(2) answers; `InvalidInput` when part of it was unmapped.
    pub fn remap(&mut self, length: usize) -> io::Result<()> {
        let at = self.pages(&(0..self.length))?;
        // SAFETY: the whole old range is ours, and no reference to its memory exists; MAYMOVE replaces nothing.
        let moved = unsafe { libc::mremap(at as *mut _, self.length, length, libc::MREMAP_MAYMOVE) };
        self.moved_to(moved, length)
    }

    /// mremap(2) to the addresses of a reservation.
    ///
    /// # Errors
    /// As [`CpuMapping::remap`]; the reservation is lost then.
    pub fn remap_to(&mut self, place: Reservation) -> io::Result<()> {
        let at = self.pages(&(0..self.length))?;
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        let target: *mut libc::c_void = place.address() as *mut _;
        // SAFETY: both ranges are ours, and no reference to their memory exists.
        let moved = unsafe { libc::mremap(at as *mut _, self.length, place.length(), flags, target) };
        self.moved_to(moved, place.length())?;
        std::mem::forget(place);
        Ok(())
    }

    fn moved_to(&mut self, base: *mut libc::c_void, length: usize) -> io::Result<()> {
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        (self.base, self.length) = (base as usize, pages(length));
        Ok(())
    }

    /// mprotect(2) of a part, in whole pages.
    ///
    /// # Errors
    /// What mprotect(2) answers; `InvalidInput` outside the mapping or within a page.
    pub fn protect(&mut self, range: Range<usize>, to: Protection) -> io::Result<()> {
        let at = self.pages(&range)?;
        let access = match to {
            Protection::None => libc::PROT_NONE,
            Protection::Read => libc::PROT_READ,
            Protection::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
        };
        // SAFETY: the range is our own mapping, and no reference to its memory exists.
        check(unsafe { libc::mprotect(at as *mut _, range.len(), access) })
    }

    /// mmap(2) with MAP_FIXED: a part, in whole pages, becomes a shared, read-only mapping of another file.
    ///
    /// # Errors
    /// What mmap(2) answers; `InvalidInput` outside the mapping or within a page.
    pub fn replace(&mut self, range: Range<usize>, file: impl AsFd, offset: u64) -> io::Result<()> {
        let at = self.pages(&range)?;
        let flags = libc::MAP_SHARED | libc::MAP_FIXED;
        // SAFETY: the range is our own mapping, and no reference to its memory exists.
        unsafe { map_at(at, range.len(), libc::PROT_READ, flags, &file, offset) }.map(drop)
    }

    fn pages(&self, range: &Range<usize>) -> io::Result<usize> {
        let whole = range.start.is_multiple_of(PAGE) && range.end.is_multiple_of(PAGE) && !range.is_empty();
        match self.place(range.start, range.len()) {
            Ok(at) if whole => Ok(at),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    fn place(&self, offset: usize, length: usize) -> Result<usize, Fault> {
        let end = offset.checked_add(length).filter(|end| *end <= self.length).ok_or(Fault)?;
        let hit = self.holes.iter().any(|hole| hole.start < end && offset < hole.end);
        if hit || !self.home.is_current() { Err(Fault) } else { Ok(self.base + offset) }
    }
}

impl Drop for CpuMapping {
    fn drop(&mut self) {
        if !self.home.is_current() {
            return;
        }
        self.holes.sort_by_key(|hole| hole.start);
        let mut at = 0;
        let ends = self.holes.iter().map(|hole| (hole.start, hole.end));
        for (end, next) in ends.chain(std::iter::once((self.length, self.length))) {
            if end > at {
                // SAFETY: what lies between two holes is our own mapping, and nobody refers to it any more.
                unsafe { libc::munmap((self.base + at) as *mut _, end - at) };
            }
            at = next;
        }
    }
}

impl fmt::Debug for CpuMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CpuMapping({:#x}, {} bytes)", self.base, self.length)
    }
}

/// Copies from any address of this process, by the kernel: what cannot be read is an answer and no signal.
///
/// # Errors
/// [`Fault`] when not all of it can be read.
pub fn read_own_memory(address: usize, target: &mut [u8]) -> Result<(), Fault> {
    let local = libc::iovec { iov_base: target.as_mut_ptr().cast(), iov_len: target.len() };
    let remote = libc::iovec { iov_base: address as *mut _, iov_len: target.len() };
    // SAFETY: the local side is `target`; the kernel checks the other.
    let moved = unsafe { libc::process_vm_readv(libc::getpid(), &local, 1, &remote, 1, 0) };
    if usize::try_from(moved) == Ok(target.len()) { Ok(()) } else { Err(Fault) }
}

/// # Safety
/// With MAP_FIXED in `flags` the range belongs to the caller, and no reference to its memory exists.
unsafe fn map_at(at: usize, length: usize, access: i32, flags: i32, file: &impl AsFd, offset: u64) -> io::Result<usize> {
    let offset = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: the caller's promise.
    let base = unsafe { libc::mmap(ptr::with_exposed_provenance_mut(at), length, access, flags, fd, offset) };
    match base {
        libc::MAP_FAILED => Err(io::Error::last_os_error()),
        base => Ok(base as usize),
    }
}

fn protection(writable: bool) -> i32 {
    if writable { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ }
}

fn sharing_flag(sharing: Sharing) -> i32 {
    match sharing {
        Sharing::Shared => libc::MAP_SHARED,
        Sharing::Private => libc::MAP_PRIVATE,
    }
}

fn pages(length: usize) -> usize {
    length.next_multiple_of(PAGE)
}

fn check(result: i32) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::private_memfd;

    #[test]
    fn it_can_be_cut_moved_protected_and_replaced() {
        let (file, other) = (private_memfd("a", 8 * 4096).expect("memfd"), private_memfd("b", 4096).expect("memfd"));
        let mut mapping = CpuMapping::map(&file, 4096, 4 * PAGE, Sharing::Shared, true).expect("map");
        mapping.write(PAGE - 2, b"kept").expect("store");
        mapping.remap(6 * PAGE).expect("mremap");
        let mut back = [0; 4];
        mapping.read(PAGE - 2, &mut back).expect("load");
        assert_eq!(&back, b"kept");
        let place = Reservation::anywhere(6 * PAGE).expect("room");
        let wanted = place.address();
        mapping.remap_to(place).expect("mremap");
        assert_eq!(mapping.address(), wanted);
        mapping.protect(0..PAGE, Protection::None).expect("mprotect");
        assert_eq!(mapping.read(0, &mut back), Err(Fault));
        mapping.protect(0..PAGE, Protection::Read).expect("mprotect");
        assert_eq!(mapping.write(0, b"x"), Err(Fault));
        mapping.replace(PAGE..2 * PAGE, &other, 0).expect("MAP_FIXED");
        mapping.read(PAGE - 2, &mut back).expect("load");
        assert_eq!(&back, b"ke\0\0");
        mapping.unmap(2 * PAGE..3 * PAGE).expect("munmap");
        assert_eq!(mapping.read(2 * PAGE, &mut back), Err(Fault));
        assert!(mapping.unmap(2 * PAGE..4 * PAGE).is_err(), "part of it is not ours any more");
        assert!(mapping.unmap(1..PAGE).is_err() && mapping.remap(PAGE).is_err());
        assert_eq!(read_own_memory(1, &mut back), Err(Fault));
    }
}
