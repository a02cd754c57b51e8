//! A driver in the kernel that imports dma-bufs for programs: the graphics subsystem's, which vgem and most others share.
//! What it has imported it holds without a descriptor or a mapping of anybody.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

/// `DRM_IOCTL_PRIME_HANDLE_TO_FD` of drm.h: `_IOWR('d', 0x2d, struct drm_prime_handle)`.
const PRIME_HANDLE_TO_FD: u32 = 0xc00c_642d;
/// `DRM_IOCTL_PRIME_FD_TO_HANDLE` of drm.h: `_IOWR('d', 0x2e, struct drm_prime_handle)`.
const PRIME_FD_TO_HANDLE: u32 = 0xc00c_642e;

/// `struct drm_prime_handle` of drm.h.
#[repr(C)]
#[derive(zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::Immutable, zerocopy::KnownLayout)]
struct PrimeHandle {
    handle: u32,
    flags: u32,
    fd: i32,
}

const _: () = assert!(size_of::<PrimeHandle>() == 12);

/// A graphics device.
pub struct GraphicsDevice(File);

/// A dma-buf that the driver holds. Dropping it lets go.
pub struct Imported {
    device: GraphicsDevice,
    handle: u32,
}

impl GraphicsDevice {
    /// The first that can be opened.
    pub fn any() -> Option<GraphicsDevice> {
        let nodes = fs::read_dir("/dev/dri").ok()?.flatten().map(|entry| entry.path());
        let mut nodes: Vec<_> = nodes.filter(|path| !path.is_dir()).collect();
        nodes.sort();
        nodes.into_iter().find_map(|node| OpenOptions::new().read(true).write(true).open(node).ok()).map(GraphicsDevice)
    }

    /// Imports a dma-buf.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn import(self, buffer: BorrowedFd<'_>) -> io::Result<Imported> {
        let mut argument = PrimeHandle { handle: 0, flags: 0, fd: buffer.as_raw_fd() };
        peerfs_sys::ioctl(&self.0, PRIME_FD_TO_HANDLE, &mut argument)?;
        Ok(Imported { device: self, handle: argument.handle })
    }
}

impl Imported {
    /// A descriptor of what the driver holds, by the driver's handle alone: nobody else need have one.
    ///
    /// # Errors
    /// What the driver answers.
    pub fn export(&self) -> io::Result<OwnedFd> {
        let flags = (libc::O_CLOEXEC | libc::O_RDWR).cast_unsigned();
        let mut argument = PrimeHandle { handle: self.handle, flags, fd: -1 };
        peerfs_sys::ioctl(&self.device.0, PRIME_HANDLE_TO_FD, &mut argument)?;
        // What the kernel gives is a number; its duplicate has an owner.
        let owned = peerfs_sys::duplicate_descriptor(std::process::id(), argument.fd);
        nix::unistd::close(argument.fd)?;
        owned
    }
}
