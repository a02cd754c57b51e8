//! The volume: everything peerfs keeps on a block device.
//!
//! [`Volume`] ties the parts together: the superblock, the metadata area with
//! the database in it, the overlay of uncommitted changes and the allocator.
//! It knows records and blocks, not files: operations above read records,
//! collect a [`Batch`], [`Volume::apply`] it and [`Volume::commit`] now and then.
//!
//! The rules that make a crash harmless: write data to its blocks before
//! applying the batch that refers to them (the commit flushes the device before
//! it takes effect); freed blocks are reused only after their commit; an
//! applied batch is in one commit whole.

mod alloc;
mod backend;
mod batch;
mod chain;
mod check;
mod error;
mod format;
mod freemap;
mod key;
mod kv;
mod meta_area;
mod overlay;
mod ownership;
mod range;
mod records;
mod shared;
mod super_store;
mod superblock;
mod trim;
mod volume;

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
pub(crate) mod testdev;
#[cfg(test)]
mod volume_tests;

pub use alloc::{AllocRequest, Allocation, HUGE_BLOCKS, Space};
pub use batch::Batch;
pub use check::{Problem, Report, check, check_volume, open_probe};
pub use error::StoreError;
pub use format::{FormatOptions, MIN_DEVICE_BYTES, Summary, probe};
pub use key::{Key, NAME_BYTES, RecordError};
pub use kv::CommitSeq;
pub use overlay::Bytes;
pub use range::BlockRange;
pub use records::{
    BlockCount, Counter, DirentByCookie, DirentByName, Extent, FileKind, Inode, ROOT_INO, Record, SYMLINK_BYTES, SharedRun,
    Timestamp, XATTR_BYTES, counter, extent_flags,
};
pub use superblock::{FORMAT_NAME, LABEL_BYTES, SUPERBLOCK_BLOCKS};
pub use volume::{OpenOptions, Volume, host_id};
