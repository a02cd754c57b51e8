//! Whether anybody else has a file open or mapped.
//!
//! The kernel grants a write lease (F_SETLEASE) only to the one open file
//! description there is. A mapping keeps the description it was made through, so
//! it counts although its descriptor was closed; a duplicate of our own does not.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// `F_SETSIG` of fcntl(2), which the libc crate lacks.
const F_SETSIG: libc::c_int = 10;

/// True when an open file description other than that of `file` exists, in any process, or behind a mapping. `file`
/// must not be the descriptor that memfd_create(2) made: the kernel does not count that one.
///
/// # Errors
/// What fcntl(2) answers.
pub(crate) fn is_held(file: &File) -> io::Result<bool> {
    // Should somebody open it while we have the lease, the kernel tells us by a signal: by one that is ignored.
    control(file, F_SETSIG, libc::SIGURG)?;
    match control(file, libc::F_SETLEASE, libc::F_WRLCK) {
        Ok(()) => control(file, libc::F_SETLEASE, libc::F_UNLCK).map(|()| false),
        Err(err) if err.raw_os_error() == Some(libc::EAGAIN) => Ok(true),
        Err(err) => Err(err),
    }
}

fn control(file: &File, command: libc::c_int, argument: libc::c_int) -> io::Result<()> {
    // SAFETY: these commands take an integer and touch no memory of ours.
    match unsafe { libc::fcntl(file.as_raw_fd(), command, argument) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use crate::{Window, WindowFile};

    #[test]
    fn every_sort_of_holder_counts_and_our_own_do_not() {
        let file = WindowFile::create(8192).expect("memfd");
        let held = || file.is_held().expect("lease");
        assert!(!held());
        let ours = file.duplicate().expect("dup");
        assert!(!held(), "a duplicate is the same description");
        for writable in [false, true] {
            let passed = file.reopen(writable).expect("reopen");
            assert!(held(), "open, writable: {writable}");
            let window = Window::map(&passed, 8192, writable).expect("map");
            drop(passed);
            assert!(held(), "mapped only, writable: {writable}");
            drop(window);
            assert!(!held(), "nobody, writable: {writable}");
        }
        drop(ours);
        let passed = file.reopen(true).expect("reopen");
        let window = Window::map(&passed, 8192, true).expect("map");
        drop(passed);
        file.truncate_to_zero().expect("cut");
        assert!(held(), "a mapping of nothing is one");
        drop(window);
        assert!(!held());
    }
}
