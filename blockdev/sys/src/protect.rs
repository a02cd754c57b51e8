//! Asking the kernel for more access to a window than it was mapped with.

use std::io;

use crate::Window;

impl Window {
    /// Tries to make a mapping writable that was made read-only, as a hostile holder of a read grant would.
    /// The window itself goes on refusing writes.
    ///
    /// # Errors
    /// What mprotect(2) answers: `PermissionDenied` when the descriptor behind it is read-only.
    pub fn demand_write_access(&self) -> io::Result<()> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the range is our own mapping; more access to it invalidates no pointer, and no reference to it exists.
        match unsafe { libc::mprotect(self.as_ptr().cast(), self.length(), access) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::WindowFile;

    #[test]
    fn a_read_only_descriptor_stays_read_only() {
        let file = WindowFile::create(4096).expect("memfd");
        let reader = Window::map(file.reopen(false).expect("reopen"), 4096, false).expect("map");
        let refused = reader.demand_write_access().expect_err("a read-only descriptor");
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
        let writer = Window::map(file.reopen(true).expect("reopen"), 4096, false).expect("map");
        writer.demand_write_access().expect("a writable descriptor");
    }
}
