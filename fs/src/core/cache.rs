//! The inodes in memory.
//!
//! There is never more than one [`Inode`] of a number: it is made and dropped
//! under its table shard's lock, and dropped only while nobody holds it.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;

use super::Core;
use super::inode::Inode;
use crate::error::{FsError, Result};
use crate::store::{CommitSeq, Inode as Record, Key};
use crate::sync::lock;
use crate::types::Ino;

/// Inodes by number.
#[derive(Debug, Default)]
pub(super) struct Cache {
    inodes: DashMap<Ino, Arc<Inode>>,
    /// Inodes whose times changed since their record was last put into a batch.
    dirty: Mutex<HashSet<Ino>>,
    /// Inodes that may be unused, looked at by the next sweep.
    idle: Mutex<HashSet<Ino>>,
}

impl Cache {
    /// The inode if it is in memory.
    pub(super) fn peek(&self, ino: Ino) -> Option<Arc<Inode>> {
        self.inodes.get(&ino).map(|entry| entry.value().clone())
    }

    /// Puts a new inode in.
    pub(super) fn insert(&self, inode: Arc<Inode>) {
        self.inodes.insert(inode.ino, inode);
    }

    /// Numbers of all inodes in memory.
    pub(super) fn numbers(&self) -> Vec<Ino> {
        self.inodes.iter().map(|entry| *entry.key()).collect()
    }

    pub(super) fn mark_dirty(&self, ino: Ino) {
        lock(&self.dirty).insert(ino);
    }

    pub(super) fn take_dirty(&self) -> HashSet<Ino> {
        std::mem::take(&mut *lock(&self.dirty))
    }

    /// The inode may be unused soon.
    pub(super) fn mark_idle(&self, ino: Ino) {
        lock(&self.idle).insert(ino);
    }

    /// Drops an inode if nothing needs it in memory. True when it is gone. One with changes after
    /// the `committed` commit stays: an fsync has to find that there is something to commit.
    pub(super) fn evict(&self, ino: Ino, committed: CommitSeq) -> bool {
        let idle = |inode: &Arc<Inode>| {
            Arc::strong_count(inode) == 1
                && inode.is_unused()
                && inode.changed_in.load(Ordering::Acquire) <= committed
                && !inode.attributes().dirty
        };
        self.inodes.remove_if(&ino, |_, inode| idle(inode)).is_some() || !self.inodes.contains_key(&ino)
    }

    /// Drops whatever became unused; what is held right now stays on the list.
    pub(super) fn sweep(&self, committed: CommitSeq) {
        let candidates = std::mem::take(&mut *lock(&self.idle));
        let kept: Vec<Ino> = candidates
            .into_iter()
            .filter(|ino| !self.evict(*ino, committed) && self.peek(*ino).is_some_and(|i| i.is_unused()))
            .collect();
        lock(&self.idle).extend(kept);
    }
}

impl Core {
    /// An inode that a request names.
    pub(super) fn inode(&self, ino: Ino) -> Result<Arc<Inode>> {
        if let Some(inode) = self.cache.peek(ino) {
            return Ok(inode);
        }
        let inode = match self.cache.inodes.entry(ino) {
            Entry::Occupied(entry) => return Ok(entry.get().clone()),
            Entry::Vacant(entry) => {
                let record: Record = self.get(Key::Inode(ino))?.ok_or(FsError::errno(libc::ENOENT))?;
                if record.ino != ino {
                    return Err(FsError::with_context(
                        libc::EIO,
                        format!("the record of inode {ino} names inode {}; run `peerfs fsck`", record.ino),
                    ));
                }
                entry.insert(Arc::new(Inode::new(record))).clone()
            }
        };
        self.cache.mark_idle(ino);
        Ok(inode)
    }

    /// An inode that has to be a directory.
    pub(super) fn directory(&self, ino: Ino) -> Result<Arc<Inode>> {
        let inode = self.inode(ino)?;
        if inode.is_directory() { Ok(inode) } else { Err(FsError::errno(libc::ENOTDIR)) }
    }

    /// Takes back `count` look-ups.
    pub(super) fn forget_lookups(&self, ino: Ino, count: u64) {
        let Some(inode) = self.cache.peek(ino) else {
            return;
        };
        let before = inode
            .lookups
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |lookups| Some(lookups.saturating_sub(count)))
            .unwrap_or(0);
        if before <= count {
            self.retire(inode);
        }
    }

    /// After the last look-up or handle: frees a nameless inode, drops an idle one.
    pub(super) fn retire(&self, inode: Arc<Inode>) {
        if !inode.is_unused() {
            return;
        }
        let ino = inode.ino;
        self.reap_if_nameless(&inode);
        drop(inode);
        if !self.cache.evict(ino, self.committed.load(Ordering::Acquire)) {
            self.cache.mark_idle(ino);
        }
    }
}
