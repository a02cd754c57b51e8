//! What an operation fails with. The errno is chosen where the error is made.

use std::fmt;

use peerfs_blockdev::DeviceError;

/// An error number and, where it helps a reader of the log, why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FsError {
    errno: i32,
    context: Option<String>,
}

/// Result of a filesystem operation.
pub type Result<T> = std::result::Result<T, FsError>;

impl FsError {
    /// A plain error number, for outcomes that POSIX names.
    pub const fn errno(errno: i32) -> Self {
        FsError { errno, context: None }
    }

    /// An error number with the reason behind it.
    pub fn with_context(errno: i32, context: impl Into<String>) -> Self {
        FsError { errno, context: Some(context.into()) }
    }

    /// The error number (errno.h).
    pub fn code(&self) -> i32 {
        self.errno
    }

    /// Something is wrong with the volume rather than with the request.
    pub fn is_internal(&self) -> bool {
        self.context.is_some()
    }
}

impl fmt::Display for FsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let errno = nix::errno::Errno::from_raw(self.errno);
        match &self.context {
            Some(context) => write!(f, "{context}: {errno}"),
            None => write!(f, "{errno}"),
        }
    }
}

impl std::error::Error for FsError {}

impl From<DeviceError> for FsError {
    fn from(error: DeviceError) -> Self {
        FsError::with_context(error.errno(), error.to_string())
    }
}
