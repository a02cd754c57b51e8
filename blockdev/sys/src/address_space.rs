//! Telling the process that made an object from a child it forked.
//!
//! A fork child inherits every object but none of the mappings behind them (they
//! are MADV_DONTFORK): it must neither use nor unmap those addresses. The check
//! costs one load: a page that the kernel wipes on fork (MADV_WIPEONFORK).

use std::ptr::{self, NonNull};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

const PAGE_BYTES: usize = 4096;

/// Identity of an address space, as far as fork(2) is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AddressSpace(u64);

struct Mark(NonNull<AtomicU64>);

// SAFETY: the page is never unmapped and is accessed atomically only.
unsafe impl Send for Mark {}
// SAFETY: as above.
unsafe impl Sync for Mark {}

impl AddressSpace {
    /// The caller's. It differs between a process and its fork children; threads share it.
    pub fn current() -> Self {
        static MARK: OnceLock<Option<Mark>> = OnceLock::new();
        match MARK.get_or_init(Mark::create) {
            Some(mark) => AddressSpace(mark.value()),
            None => AddressSpace(u64::from(std::process::id())),
        }
    }

    /// Is this the caller's address space?
    pub fn is_current(self) -> bool {
        self == Self::current()
    }
}

impl Mark {
    /// `None` where the kernel cannot wipe pages on fork.
    fn create() -> Option<Mark> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address the kernel chooses replaces nothing.
        let page = unsafe { libc::mmap(ptr::null_mut(), PAGE_BYTES, access, flags, -1, 0) };
        if page == libc::MAP_FAILED {
            return None;
        }
        // SAFETY: the page was mapped above and is ours.
        if unsafe { libc::madvise(page, PAGE_BYTES, libc::MADV_WIPEONFORK) } != 0 {
            // SAFETY: as above; nobody else has seen the address.
            unsafe { libc::munmap(page, PAGE_BYTES) };
            return None;
        }
        NonNull::new(page.cast()).map(Mark)
    }

    /// The counter is inherited over fork while the page is wiped, so a child draws a number that no ancestor has.
    fn value(&self) -> u64 {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        // SAFETY: the page is mapped for the life of the process, aligned, and zero is a valid value.
        let cell = unsafe { self.0.as_ref() };
        let value = cell.load(Ordering::Relaxed);
        if value != 0 {
            return value;
        }
        let fresh = NEXT.fetch_add(1, Ordering::Relaxed);
        match cell.compare_exchange(0, fresh, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => fresh,
            Err(other) => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fork_child_is_another_address_space() {
        let ours = AddressSpace::current();
        assert!(ours.is_current());
        // SAFETY: the child only loads memory and leaves by _exit.
        let child = unsafe { libc::fork() };
        assert!(child >= 0);
        if child == 0 {
            let same = ours.is_current() || !AddressSpace::current().is_current();
            // SAFETY: _exit runs no handlers of the parent.
            unsafe { libc::_exit(i32::from(same)) };
        }
        let mut status = 0;
        // SAFETY: status is a valid place for the result.
        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
        assert_eq!(libc::WEXITSTATUS(status), 0);
        assert!(ours.is_current());
    }
}
