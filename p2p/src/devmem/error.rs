//! Why a call of the pool failed.

use std::io;

use nix::errno::Errno;
use peerfs_blockdev::DeviceError;

/// Why device memory was not allocated, changed, read or written.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// Freed, or its owner's session ended, or it never was.
    #[error("device memory {id} is gone: it was freed, or its owner ended; allocate again")]
    Gone {
        /// The allocation.
        id: u64,
    },
    /// Only the session that allocated it may do this.
    #[error("device memory {id} belongs to another session")]
    NotOwner {
        /// The allocation.
        id: u64,
    },
    /// Nothing, or a size that no device has.
    #[error("{bytes} bytes cannot be allocated; ask for 1 byte or more")]
    BadSize {
        /// What was asked for.
        bytes: u64,
    },
    /// Memory is given back by freeing all of it.
    #[error("device memory {id} has {bytes} bytes and cannot shrink; free it instead")]
    Shrinks {
        /// The allocation.
        id: u64,
        /// Its size, bytes.
        bytes: u64,
    },
    /// The device is smaller.
    #[error("{bytes} bytes were asked for, the device has {device_bytes} in all")]
    TooLarge {
        /// What was asked for.
        bytes: u64,
        /// What the device has.
        device_bytes: u64,
    },
    /// The user may not hold more.
    #[error("user {uid} holds {held} bytes of device memory and may hold {limit}; free some")]
    UserLimit {
        /// The user.
        uid: u32,
        /// Held now, bytes.
        held: u64,
        /// The limit, bytes.
        limit: u64,
    },
    /// The process may not hold more.
    #[error("process {tgid} holds {held} bytes of device memory and may hold {limit}; free some")]
    ProcessLimit {
        /// The process.
        tgid: u32,
        /// Held now, bytes.
        held: u64,
        /// The limit, bytes.
        limit: u64,
    },
    /// The user may not hold more allocations.
    #[error("user {uid} holds {limit} allocations of device memory, as many as allowed; use fewer, larger ones")]
    TooMany {
        /// The user.
        uid: u32,
        /// The limit.
        limit: u64,
    },
    /// Neither the device nor the main memory set aside for it has room.
    #[error("{bytes} bytes of device memory: the device is full, and so is the main memory that others could move to")]
    Full {
        /// What was asked for.
        bytes: u64,
    },
    /// A pin holds it where it is.
    #[error("device memory {id} is pinned and cannot move")]
    Pinned {
        /// The allocation.
        id: u64,
    },
    /// The range starts at or beyond the end.
    #[error("offset {offset} is beyond the {bytes} bytes of device memory {id}")]
    BeyondEnd {
        /// The allocation.
        id: u64,
        /// Where the range starts.
        offset: u64,
        /// Size of the allocation.
        bytes: u64,
    },
    /// The device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Main memory for a moved allocation.
    #[error("main memory for device memory: {0}")]
    Main(#[from] io::Error),
}

impl PoolError {
    /// The error number (errno.h) to answer with.
    pub fn errno(&self) -> i32 {
        match self {
            PoolError::Gone { .. } => Errno::ENOENT as i32,
            PoolError::NotOwner { .. } => Errno::EACCES as i32,
            PoolError::BadSize { .. } | PoolError::Shrinks { .. } => Errno::EINVAL as i32,
            PoolError::TooLarge { .. } => Errno::EFBIG as i32,
            PoolError::UserLimit { .. } | PoolError::ProcessLimit { .. } | PoolError::TooMany { .. } => Errno::EDQUOT as i32,
            PoolError::Full { .. } | PoolError::Pinned { .. } => Errno::ENOMEM as i32,
            PoolError::BeyondEnd { .. } => Errno::ENOSPC as i32,
            PoolError::Device(error) => error.errno(),
            PoolError::Main(error) => error.raw_os_error().unwrap_or(Errno::ENOMEM as i32),
        }
    }
}
