//! The filesystem: inodes, names, data, on top of the store.
//!
//! Every operation checks, then makes one [`meta::Txn`], which is applied whole or
//! not at all and survives a crash the same way. File data is on the device before
//! the transaction that refers to it is applied.
//!
//! # Locks, in the order in which they are taken
//!
//! 1. `Core::rename_lock`, for renames between two directories: the tree's shape
//!    (`Inode::parent`) changes only under it.
//! 2. Content locks of directories whose entries are used: an ancestor before its
//!    descendant, unrelated ones by inode number.
//! 3. Content locks of the inodes that those entries name, by inode number.
//! 4. Attribute locks, one at a time, never across I/O.
//! 5. Leaves: the tables in [`cache`] and [`handles`], [`numbers`], queues, the store's own.
//!
//! None of 1 to 4 is held during a call of [`Coherence`] (but the one that never waits, see [`quarantine`]) or
//! [`Core::commit`]: ranges
//! are closed first, then the inode is locked, and the guard outlives the lock. A
//! content lock is held shared while blocks are read or overwritten in place, and
//! exclusively from the first look at anything that a transaction puts down until it is applied.

mod acl;
mod attr;
mod cache;
mod commit;
mod cow;
mod dir;
mod extent_map;
mod fallocate;
mod file_read;
mod file_write;
mod handles;
mod inode;
mod io;
mod mapping;
mod meta;
mod namespace;
mod numbers;
mod ops_impl;
mod orphans;
mod policy;
mod quarantine;
mod refetch;
mod reflink;
mod rename;
mod reservation;
mod set_id;
mod synchronous;
mod time;
mod xattr;

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use peerfs_blockdev::BlockDevice;

pub use self::mapping::{ExtentSurvey, HandleInfo};
pub use self::refetch::Dropping;
pub use self::reflink::CloneRange;
pub use self::synchronous::Synchronous;
use crate::coherence::Coherence;
use crate::error::{FsError, Result};
use crate::store::{BlockRange, Volume};

/// When reading updates the access time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Atime {
    /// Never.
    Never,
    /// When it is not younger than the last change, or a day old.
    #[default]
    Relative,
    /// Always.
    Always,
}

/// How to mount.
#[derive(Debug, Clone)]
pub struct MountOptions {
    /// Change nothing, orphans and access times included.
    pub read_only: bool,
    /// Longest time a change stays in memory only.
    pub commit_interval: Duration,
    /// Access times.
    pub atime: Atime,
    /// Also those of directories.
    pub directory_atime: bool,
    /// Inodes kept in memory, of those that the kernel knows and nobody uses at present.
    pub inodes_kept: usize,
    /// What is durable without fsync.
    pub synchronous: Synchronous,
}

impl Default for MountOptions {
    fn default() -> Self {
        MountOptions {
            read_only: false,
            commit_interval: Duration::from_secs(5),
            atime: Atime::default(),
            directory_atime: true,
            synchronous: Synchronous::default(),
            inodes_kept: 64 << 10,
        }
    }
}

/// A mounted volume. Implements [`crate::ops::Operations`].
///
/// Dropping it without [`Core::close`] is the same as a crash.
pub struct Core {
    volume: Volume,
    device: Arc<dyn BlockDevice>,
    total_blocks: u64,
    options: MountOptions,
    coherence: RwLock<Arc<dyn Coherence>>,
    cache: cache::Cache,
    handles: handles::Handles,
    numbers: numbers::Numbers,
    committer: commit::Committer,
    rename_lock: Mutex<()>,
    quarantine: quarantine::Quarantine,
    /// Nameless inodes that wait for a revocation before they can be freed.
    reap_queue: Mutex<Vec<Arc<inode::Inode>>>,
    /// Number of the latest durable commit.
    committed: AtomicU64,
    /// A commit failed.
    failed: AtomicBool,
    /// Size of the uncommitted changes that a commit had no room for; 0 when the last one had.
    refused_bytes: AtomicUsize,
}

impl Core {
    /// Starts to serve a volume: frees what the last mount left behind, starts the commit thread.
    pub fn open(
        volume: Volume,
        device: Arc<dyn BlockDevice>,
        coherence: Arc<dyn Coherence>,
        options: MountOptions,
    ) -> Result<Arc<Core>> {
        let options = MountOptions { read_only: options.read_only || volume.read_only(), ..options };
        let core = Arc::new(Core {
            total_blocks: volume.total_blocks(),
            volume,
            device,
            cache: cache::Cache::new(options.inodes_kept),
            options,
            coherence: RwLock::new(coherence),
            handles: handles::Handles::default(),
            numbers: numbers::Numbers::default(),
            committer: commit::Committer::default(),
            rename_lock: Mutex::new(()),
            quarantine: quarantine::Quarantine::default(),
            reap_queue: Mutex::default(),
            committed: AtomicU64::new(0),
            failed: AtomicBool::new(false),
            refused_bytes: AtomicUsize::new(0),
        });
        core.directory(crate::types::ROOT_INO)?;
        if !core.options.read_only {
            core.reap_leftovers()?;
        }
        core.committer.start(Arc::downgrade(&core), core.options.commit_interval).map_err(|error| {
            FsError::with_context(
                error.raw_os_error().unwrap_or(libc::EAGAIN),
                format!("the commit thread does not start: {error}"),
            )
        })?;
        Ok(core)
    }

    /// Makes everything durable, marks the volume clean and ends the commit thread.
    /// The caller has ended all mappings and sends no more operations.
    pub fn close(&self) -> Result<()> {
        self.committer.stop();
        if self.options.read_only {
            return Ok(self.volume.close()?);
        }
        self.reap_queued();
        crate::ops::Operations::sync(self)?;
        Ok(self.volume.close()?)
    }

    /// The volume underneath.
    pub fn volume(&self) -> &Volume {
        &self.volume
    }

    /// Tells the device of the free blocks of a range, as far as they are in runs of `least_blocks`; returns how many.
    ///
    /// # Errors
    /// EROFS. EOPNOTSUPP: the device cannot discard. EIO, what came before it is discarded.
    pub fn trim(&self, blocks: BlockRange, least_blocks: u64) -> Result<u64> {
        self.admit_change()?;
        Ok(self.volume.trim(blocks, least_blocks)?)
    }

    fn coherence(&self) -> Arc<dyn Coherence> {
        crate::sync::read(&self.coherence).clone()
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.committer.stop();
    }
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core").field("volume", &self.volume).field("options", &self.options).finish_non_exhaustive()
    }
}
