//! What the on-disk side can fail with. The message names the device and says
//! what to do; the error number is chosen here and nowhere else.

use peerfs_blockdev::DeviceError;

use super::BlockRange;
use super::key::RecordError;

/// A failed operation on a volume.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// No superblock of ours.
    #[error("{device}: not a peerfs volume; make one with `peerfs mkfs`")]
    NotPeerfs {
        /// Device as the user named it.
        device: String,
    },
    /// The device is smaller than the volume on it.
    #[error(
        "{device}: truncated: the volume has {recorded_bytes} bytes, the device {actual_bytes}; \
         restore the missing end from a backup"
    )]
    Truncated {
        /// Device as the user named it.
        device: String,
        /// Size at mkfs in bytes.
        recorded_bytes: u64,
        /// Size now in bytes.
        actual_bytes: u64,
    },
    /// Both copies of the superblock are damaged.
    #[error("{device}: both copies of the superblock are damaged ({reason}); restore from a backup")]
    CorruptSuperblock {
        /// Device as the user named it.
        device: String,
        /// What is wrong with the better copy.
        reason: &'static str,
    },
    /// Written by a newer peerfs.
    #[error(
        "{device}: the volume has format {format}, this peerfs understands up to {}; \
         use a newer peerfs",
        super::superblock::FORMAT_NAME
    )]
    NewerFormat {
        /// Device as the user named it.
        device: String,
        /// Name of the format as recorded.
        format: String,
    },
    /// mkfs was interrupted.
    #[error("{device}: mkfs did not finish; run `peerfs mkfs --force` again")]
    Unfinished {
        /// Device as the user named it.
        device: String,
    },
    /// mkfs would destroy something.
    #[error("{device}: holds {what}; use --force to overwrite it")]
    InUse {
        /// Device as the user named it.
        device: String,
        /// What is there.
        what: String,
    },
    /// Too small for a volume.
    #[error("{device}: {actual_bytes} bytes are too few for a volume, {needed_bytes} are needed")]
    TooSmall {
        /// Device as the user named it.
        device: String,
        /// Size in bytes.
        actual_bytes: u64,
        /// Smallest size in bytes.
        needed_bytes: u64,
    },
    /// The label does not fit.
    #[error("the label is {length} bytes long, at most {limit} are allowed")]
    LabelTooLong {
        /// Length in bytes.
        length: usize,
        /// Limit in bytes.
        limit: usize,
    },
    /// The metadata database is unusable.
    #[error("{device}: the metadata is damaged ({reason}); run `peerfs fsck`")]
    CorruptMetadata {
        /// Device as the user named it.
        device: String,
        /// The database's words.
        reason: String,
    },
    /// A record does not decode.
    #[error("the metadata is damaged: {0}; run `peerfs fsck`")]
    CorruptRecord(#[from] RecordError),
    /// Free space records contradict the rest of the metadata.
    #[error("the metadata is damaged: {range} is {problem}; run `peerfs fsck`")]
    CorruptSpace {
        /// The blocks.
        range: BlockRange,
        /// What is wrong with them.
        problem: &'static str,
    },
    /// No space, also none that a commit would give back.
    #[error("no space: {wanted_blocks} blocks wanted, {free_blocks} free")]
    NoSpace {
        /// Blocks of 4096 bytes asked for.
        wanted_blocks: u64,
        /// Blocks free for data.
        free_blocks: u64,
    },
    /// The volume was opened read-only.
    #[error("{device}: the volume is open read-only")]
    ReadOnly {
        /// Device as the user named it.
        device: String,
    },
    /// A flush failed earlier: what the device holds is unknown, so nothing is written any more.
    #[error(
        "{device}: an earlier flush failed, the volume takes no more changes; \
         check the device and mount again"
    )]
    FlushFailed {
        /// Device as the user named it.
        device: String,
    },
}

impl StoreError {
    /// A flush failed: what the device holds is unknown, and asking again may hide it.
    pub fn is_failed_flush(&self) -> bool {
        matches!(self, StoreError::FlushFailed { .. } | StoreError::Device(DeviceError::Io { op: "flush", .. }))
    }

    /// The error number to answer a system call with.
    pub fn errno(&self) -> i32 {
        match self {
            StoreError::Device(error) => error.errno(),
            StoreError::NoSpace { .. } => libc::ENOSPC,
            StoreError::ReadOnly { .. } => libc::EROFS,
            StoreError::NotPeerfs { .. }
            | StoreError::NewerFormat { .. }
            | StoreError::TooSmall { .. }
            | StoreError::LabelTooLong { .. } => libc::EINVAL,
            StoreError::InUse { .. } => libc::EEXIST,
            StoreError::Truncated { .. }
            | StoreError::CorruptSuperblock { .. }
            | StoreError::Unfinished { .. }
            | StoreError::CorruptMetadata { .. }
            | StoreError::CorruptRecord(_)
            | StoreError::CorruptSpace { .. }
            | StoreError::FlushFailed { .. } => libc::EIO,
        }
    }
}
