//! Shared mappings of memfds, unmapped on drop.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};

/// Huge page size of the architectures we run on, in bytes.
pub(crate) const HUGE_PAGE_BYTES: usize = 2 << 20;

/// A shared, read-write mapping of a whole file.
pub(crate) struct Mapping {
    ptr: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping belongs to the process, not to a thread; access is up to the owner.
unsafe impl Send for Mapping {}
// SAFETY: as above; the type itself never touches the memory.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `len` bytes of `file`.
    pub(crate) fn shared(file: &File, len: usize) -> io::Result<Self> {
        // SAFETY: a new mapping at an address the kernel chooses replaces nothing.
        let ptr = unsafe { map(ptr::null_mut(), len, libc::MAP_SHARED, file.as_raw_fd()) }?;
        Ok(Mapping { ptr, len })
    }

    /// As [`Mapping::shared`], at an address where the kernel may use huge pages, and asking for them.
    pub(crate) fn shared_huge(file: &File, len: usize) -> io::Result<Self> {
        let span = len + HUGE_PAGE_BYTES;
        let anonymous = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address the kernel chooses replaces nothing.
        let area = unsafe { map(ptr::null_mut(), span, anonymous, -1) }?;
        let area = Mapping { ptr: area, len: span };
        let lead = area.ptr.as_ptr().align_offset(HUGE_PAGE_BYTES);
        // SAFETY: lead < HUGE_PAGE_BYTES, so the result stays inside the reserved area.
        let start = unsafe { area.ptr.as_ptr().add(lead) };
        let flags = libc::MAP_SHARED | libc::MAP_FIXED;
        // SAFETY: [start, start + len) lies in the area reserved above, which nothing else uses.
        let ptr = unsafe { map(start, len, flags, file.as_raw_fd()) }?;
        std::mem::forget(area);
        let mapping = Mapping { ptr, len };
        // SAFETY: the rest of the area is ours and unused; failing to free it leaks address space only.
        unsafe {
            libc::munmap(start.sub(lead).cast(), lead);
            libc::munmap(start.add(len).cast(), HUGE_PAGE_BYTES - lead);
            libc::madvise(start.cast(), len, libc::MADV_HUGEPAGE);
        }
        Ok(mapping)
    }

    /// Start address.
    pub(crate) fn ptr(&self) -> NonNull<u8> {
        self.ptr
    }

    /// Length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `shared` and nobody refers to it any more.
        unsafe { libc::munmap(self.ptr.as_ptr().cast(), self.len) };
    }
}

/// # Safety
/// With MAP_FIXED in `flags` the range `[at, at + len)` must belong to the caller.
unsafe fn map(at: *mut u8, len: usize, flags: i32, fd: i32) -> io::Result<NonNull<u8>> {
    let protection = if fd < 0 { libc::PROT_NONE } else { libc::PROT_READ | libc::PROT_WRITE };
    // SAFETY: upheld by the caller.
    let ptr = unsafe { libc::mmap(at.cast(), len, protection, flags, fd, 0) };
    if ptr == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(ptr.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))
}
