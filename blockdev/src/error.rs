//! What a block device can fail with.

use std::io;

/// An I/O request that did not complete, naming the device and the range.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DeviceError {
    /// The operating system refused the request.
    #[error("{device}: {op} of {length} bytes at {offset}: {}", io::Error::from_raw_os_error(*errno))]
    Io {
        /// Device as the user named it.
        device: String,
        /// "read", "write", "flush" or "discard".
        op: &'static str,
        /// Byte offset on the device.
        offset: u64,
        /// Length in bytes.
        length: u64,
        /// Error number (errno.h).
        errno: i32,
    },
    /// The request reaches past the end of the device or is not block aligned.
    #[error("{device}: range {offset}+{length} is outside the device or not aligned to 4096 bytes")]
    BadRange {
        /// Device as the user named it.
        device: String,
        /// Byte offset on the device.
        offset: u64,
        /// Length in bytes.
        length: u64,
    },
    /// The device cannot be opened or used at all.
    #[error("{device}: {reason}")]
    Unusable {
        /// Device as the user named it.
        device: String,
        /// What is wrong and what to do.
        reason: String,
    },
}

impl DeviceError {
    /// The error number to answer a system call with.
    pub fn errno(&self) -> i32 {
        match self {
            DeviceError::Io { errno, .. } => *errno,
            DeviceError::BadRange { .. } => libc::EINVAL,
            DeviceError::Unusable { .. } => libc::EIO,
        }
    }
}
