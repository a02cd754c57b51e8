//! The inodes in memory.
//!
//! There is never more than one [`Inode`] of a number: it is made and dropped
//! under its table shard's lock, and dropped only while nobody holds it.
//!
//! The kernel may know millions of inodes. Of those that nobody uses at present only the number of look-ups stays here;
//! a request brings the inode back.

use std::collections::HashSet;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;

use super::Core;
use super::inode::Inode;
use crate::error::{FsError, Result};
use crate::store::{CommitSeq, Inode as Record, Key};
use crate::sync::lock;
use crate::types::Ino;

/// Inodes dropped from memory that are worth telling the allocator.
const GIVE_BACK_AT: usize = 32 << 10;

/// What is here of an inode.
#[derive(Debug)]
enum Slot {
    Loaded(Arc<Inode>),
    /// Only that the kernel has looked it up so often.
    Known(NonZeroU64),
}

/// Inodes by number.
#[derive(Debug)]
pub(super) struct Cache {
    inodes: DashMap<Ino, Slot>,
    /// Loaded ones.
    loaded: AtomicUsize,
    /// Those that a sweep leaves, of those that need not be loaded.
    kept: usize,
    /// So many loaded ones ask for a sweep.
    sweep_at: AtomicUsize,
    /// Inodes dropped since the allocator was last asked to give memory back.
    dropped: AtomicUsize,
    /// Inodes whose times changed since their record was last put into a batch.
    dirty: Mutex<HashSet<Ino>>,
    /// Inodes that may be unused, looked at by the next sweep.
    idle: Mutex<HashSet<Ino>>,
}

impl Cache {
    /// One that keeps so many inodes which nobody uses at present.
    pub(super) fn new(kept: usize) -> Self {
        Cache {
            inodes: DashMap::new(),
            loaded: AtomicUsize::new(0),
            kept,
            sweep_at: AtomicUsize::new(2 * kept),
            dropped: AtomicUsize::new(0),
            dirty: Mutex::default(),
            idle: Mutex::default(),
        }
    }

    /// The inode if it is in memory.
    pub(super) fn peek(&self, ino: Ino) -> Option<Arc<Inode>> {
        match self.inodes.get(&ino)?.value() {
            Slot::Loaded(inode) => Some(inode.clone()),
            Slot::Known(_) => None,
        }
    }

    /// Puts a new inode in, before anybody can find it on disk.
    pub(super) fn insert(&self, inode: Arc<Inode>) {
        self.inodes.insert(inode.ino, Slot::Loaded(inode));
        self.loaded.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes a new inode out again, which did not come to be.
    pub(super) fn take_out(&self, ino: Ino) {
        if self.inodes.remove(&ino).is_some() {
            self.count_dropped();
        }
    }

    /// Numbers of all inodes that the kernel knows or that are in memory.
    pub(super) fn numbers(&self) -> Vec<Ino> {
        self.inodes.iter().map(|entry| *entry.key()).collect()
    }

    /// More inodes are in memory than should be.
    pub(super) fn has_many(&self) -> bool {
        self.loaded() > self.sweep_at.load(Ordering::Relaxed)
    }

    /// Inodes in memory.
    pub(super) fn loaded(&self) -> usize {
        self.loaded.load(Ordering::Relaxed)
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

    /// Drops an inode that neither the kernel knows nor anybody needs. True when it is gone.
    pub(super) fn evict(&self, ino: Ino, committed: CommitSeq) -> bool {
        let unused = |slot: &Slot| match slot {
            Slot::Loaded(inode) => is_as_recorded(inode, committed) && inode.is_unused(),
            Slot::Known(_) => false,
        };
        if self.inodes.remove_if(&ino, |_, slot| unused(slot)).is_some() {
            self.count_dropped();
            return true;
        }
        !self.inodes.contains_key(&ino)
    }

    /// Drops whatever became unused; what is held right now stays on the list. Then unloads inodes while there are many.
    pub(super) fn sweep(&self, committed: CommitSeq) {
        let candidates = std::mem::take(&mut *lock(&self.idle));
        let kept: Vec<Ino> = candidates
            .into_iter()
            .filter(|ino| !self.evict(*ino, committed) && self.peek(*ino).is_some_and(|i| i.is_unused()))
            .collect();
        lock(&self.idle).extend(kept);
        for spared in [true, false] {
            if self.loaded() > self.kept {
                self.unload(committed, spared);
            }
        }
        // What had to stay is not looked at again for each one more.
        self.sweep_at.store(2 * self.loaded().max(self.kept), Ordering::Relaxed);
    }

    /// Keeps only the look-ups of inodes that are not in use, and not even recently if those are `spared`.
    fn unload(&self, committed: CommitSeq, spared: bool) {
        self.inodes.retain(|_, slot| {
            let Slot::Loaded(inode) = slot else { return true };
            if self.loaded() <= self.kept {
                return true;
            }
            let recent = inode.recent.swap(false, Ordering::Relaxed);
            let in_use = !is_as_recorded(inode, committed) || inode.opens.load(Ordering::Acquire) != 0;
            // A nameless one is freed after the last look-up, so it stays.
            if (spared && recent) || in_use || inode.nlink() == 0 {
                return true;
            }
            self.count_dropped();
            let lookups = NonZeroU64::new(inode.lookups.load(Ordering::Acquire));
            lookups.map(|lookups| *slot = Slot::Known(lookups)).is_some()
        });
    }

    fn count_dropped(&self) {
        self.loaded.fetch_sub(1, Ordering::Relaxed);
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// So much was dropped since the last time this was true that the allocator can give memory back.
    pub(super) fn has_shrunk(&self) -> bool {
        let shrunk = self.dropped.load(Ordering::Relaxed) >= GIVE_BACK_AT;
        if shrunk {
            self.dropped.store(0, Ordering::Relaxed);
        }
        shrunk
    }
}

/// Nobody holds it, and the last commit has all of it: one with changes after the `committed` commit stays, because an
/// fsync has to find that there is something to commit.
fn is_as_recorded(inode: &Arc<Inode>, committed: CommitSeq) -> bool {
    if Arc::strong_count(inode) != 1 {
        return false;
    }
    // What others did before they let go of it is seen from here on.
    fence(Ordering::Acquire);
    inode.changed_in.load(Ordering::Acquire) <= committed && !inode.attributes().dirty
}

impl Core {
    /// An inode that a request names.
    pub(super) fn inode(&self, ino: Ino) -> Result<Arc<Inode>> {
        if let Some(inode) = self.cache.peek(ino) {
            inode.recent.store(true, Ordering::Relaxed);
            return Ok(inode);
        }
        let inode = match self.cache.inodes.entry(ino) {
            Entry::Occupied(mut entry) => {
                let lookups = match entry.get() {
                    Slot::Loaded(inode) => return Ok(inode.clone()),
                    Slot::Known(lookups) => lookups.get(),
                };
                let inode = self.load(ino)?;
                inode.lookups.store(lookups, Ordering::Release);
                entry.insert(Slot::Loaded(inode.clone()));
                inode
            }
            Entry::Vacant(entry) => {
                let inode = self.load(ino)?;
                entry.insert(Slot::Loaded(inode.clone()));
                self.cache.mark_idle(ino);
                inode
            }
        };
        self.cache.loaded.fetch_add(1, Ordering::Relaxed);
        self.sweep_if_many();
        Ok(inode)
    }

    fn load(&self, ino: Ino) -> Result<Arc<Inode>> {
        let record: Record = self.get(Key::Inode(ino))?.ok_or(FsError::errno(libc::ENOENT))?;
        if record.ino != ino {
            return Err(FsError::with_context(
                libc::EIO,
                format!("the record of inode {ino} names inode {}; run `peerfs fsck`", record.ino),
            ));
        }
        Ok(Arc::new(Inode::new(record)))
    }

    /// An inode that somebody outside may use: one that is in memory or that the kernel knows.
    pub(super) fn known_inode(&self, ino: Ino) -> Option<Arc<Inode>> {
        self.cache.inodes.contains_key(&ino).then(|| self.inode(ino).ok()).flatten()
    }

    /// The commit thread makes room when it is needed.
    pub(super) fn sweep_if_many(&self) {
        if self.cache.has_many() {
            self.committer.wake();
        }
    }

    /// An inode that has to be a directory.
    pub(super) fn directory(&self, ino: Ino) -> Result<Arc<Inode>> {
        let inode = self.inode(ino)?;
        if inode.is_directory() { Ok(inode) } else { Err(FsError::errno(libc::ENOTDIR)) }
    }

    /// Takes back `count` look-ups.
    pub(super) fn forget_lookups(&self, ino: Ino, count: u64) {
        let inode = match self.cache.inodes.entry(ino) {
            Entry::Vacant(_) => return,
            Entry::Occupied(mut entry) => match entry.get_mut() {
                Slot::Loaded(inode) => inode.clone(),
                Slot::Known(lookups) => {
                    match NonZeroU64::new(lookups.get().saturating_sub(count)) {
                        Some(left) => *lookups = left,
                        None => drop(entry.remove()),
                    }
                    return;
                }
            },
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
