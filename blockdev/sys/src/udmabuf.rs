//! A memory file as a dma-buf, where the kernel has /dev/udmabuf.
//!
//! The pages belong to the dma-buf until its last holder, in whatever process or
//! driver, is gone. Nothing takes them away before that.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::memfd::WindowFile;

const DEVICE: &str = "/dev/udmabuf";
/// `_IOW('u', 0x42, struct udmabuf_create)` of linux/udmabuf.h.
const UDMABUF_CREATE: libc::Ioctl = 0x4018_7542;
const UDMABUF_FLAGS_CLOEXEC: u32 = 1;

/// `struct udmabuf_create`.
#[repr(C)]
struct Create {
    memfd: u32,
    flags: u32,
    offset: u64,
    size: u64,
}

const _: () = assert!(size_of::<Create>() == 24);

/// The kernel can make dma-bufs of memory files, and we may ask it to.
pub fn has_udmabuf() -> bool {
    open().is_ok()
}

fn open() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(DEVICE)
}

/// A dma-buf over the whole of a window.
#[derive(Debug)]
pub struct DmaBuf(OwnedFd);

impl DmaBuf {
    /// Makes one over `file`, which must have been made by [`WindowFile::create_fixed`].
    ///
    /// # Errors
    /// What open(2) of /dev/udmabuf answers (`NotFound`: the kernel has none), and the ioctl: EINVAL beyond the
    /// module's limits (`size_limit_mb`, `list_limit`).
    pub fn over(file: &WindowFile) -> io::Result<DmaBuf> {
        let device = open()?;
        let create =
            Create { memfd: file.file().as_raw_fd() as u32, flags: UDMABUF_FLAGS_CLOEXEC, offset: 0, size: file.length() };
        // SAFETY: the kernel reads 24 bytes, the size of the structure, and keeps no pointer to it.
        let made = unsafe { libc::ioctl(device.as_raw_fd(), UDMABUF_CREATE, std::ptr::from_ref(&create)) };
        if made < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
        Ok(DmaBuf(unsafe { OwnedFd::from_raw_fd(made) }))
    }

    /// A descriptor to hand over.
    ///
    /// # Errors
    /// What dup(2) answers.
    pub fn duplicate(&self) -> io::Result<OwnedFd> {
        self.0.try_clone()
    }

    /// Somebody besides this object has it open, mapped or imported.
    ///
    /// # Errors
    /// Reading or understanding its fdinfo.
    pub fn is_held(&self) -> io::Result<bool> {
        let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", self.0.as_raw_fd()))?;
        references(&text).map(|count| count > 1).ok_or_else(|| io::Error::other("fdinfo of a dma-buf has no count"))
    }
}

fn references(fdinfo: &str) -> Option<u64> {
    fdinfo.lines().find_map(|line| line.strip_prefix("count:"))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_found_in_fdinfo() {
        let text = "pos:\t0\nflags:\t02000002\nsize:\t8192\ncount:\t3\nexp_name:\tudmabuf\n";
        assert_eq!(references(text), Some(3));
        assert_eq!(references("pos:\t0\n"), None);
    }

    #[test]
    fn a_kernel_without_udmabuf_says_so() {
        let file = WindowFile::create_fixed(8192).expect("memfd");
        match DmaBuf::over(&file) {
            Err(err) => assert!(!has_udmabuf(), "udmabuf is there, yet: {err}"),
            Ok(buffer) => {
                assert!(!buffer.is_held().expect("fdinfo"));
                let passed = buffer.duplicate().expect("dup");
                assert!(buffer.is_held().expect("fdinfo"));
                drop(passed);
                assert!(!buffer.is_held().expect("fdinfo"));
            }
        }
    }
}
