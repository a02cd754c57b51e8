//! Inodes without a name: freed when nobody holds them any more, or at the next mount.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use peerfs_abi::Trigger;
use peerfs_p2p::Range;

use super::extent_map::Touched;
use super::inode::{FLAG_XATTRS, Inode};
use super::meta::Txn;
use super::{Core, FsError, Result};
use crate::store::{FileKind, Key};
use crate::sync::lock;

const ORPHANS_AT_ONCE: usize = 1024;
/// Extents freed in one transaction.
pub(super) const EXTENTS_AT_ONCE: usize = 4096;

impl Core {
    /// Frees an inode that has neither names nor users. One that is mapped is left to the
    /// commit thread, which may wait for the revocation.
    pub(super) fn reap_if_nameless(&self, inode: &Arc<Inode>) {
        if inode.nlink() != 0 || !inode.is_unused() {
            return;
        }
        if self.coherence().is_mapped(Some(inode.ino)) {
            lock(&self.reap_queue).push(inode.clone());
            self.committer.wake();
        } else {
            self.reap_or_log(inode);
        }
    }

    /// Frees what waits for it. No lock is held.
    pub(super) fn reap_queued(&self) {
        let queue = std::mem::take(&mut *lock(&self.reap_queue));
        for inode in queue {
            self.reap_or_log(&inode);
            self.cache.mark_idle(inode.ino);
        }
    }

    fn reap_or_log(&self, inode: &Arc<Inode>) {
        if !self.is_writable() {
            return;
        }
        if let Err(error) = self.reap(inode) {
            tracing::error!(ino = inode.ino, %error, "a deleted file stays an orphan until the next mount");
        }
    }

    fn reap(&self, inode: &Arc<Inode>) -> Result<()> {
        let _closed = self.coherence().close_range(inode.ino, Range::ALL, Trigger::Unlink);
        while self.shorten(inode)? {}
        let mut content = inode.exclude();
        if content.dead || inode.nlink() != 0 || !inode.is_unused() {
            return Ok(());
        }
        let ino = inode.ino;
        let mut txn = Txn::new();
        if inode.is_regular() {
            let map = self.extents(inode, &mut content)?;
            let stretches = map.segments(0, map.end());
            for segment in stretches.iter().filter(|segment| segment.extent.is_some()) {
                txn.delete(Key::Extent(ino, segment.file_block));
            }
            txn.free(ino, &stretches);
        }
        if inode.kind == FileKind::Symlink {
            txn.delete(Key::Symlink(ino));
        }
        if inode.attributes().record.flags & FLAG_XATTRS != 0 {
            for name in self.xattr_names(ino)? {
                txn.delete(Key::Xattr(ino, &name));
            }
        }
        txn.delete(Key::Inode(ino));
        txn.delete(Key::Orphan(ino));
        self.apply(txn)?;
        content.dead = true;
        // Nobody can ask for an fsync of it any more, so it need not wait for a commit.
        inode.changed_in.store(0, Ordering::Release);
        content.extents = None;
        content.reservation = None;
        inode.attributes().dirty = false;
        Ok(())
    }

    /// A file of very many extents goes in several transactions, last extents first; one that a crash interrupts is still
    /// an orphan. False when the rest is not too much for one.
    fn shorten(&self, inode: &Arc<Inode>) -> Result<bool> {
        let mut content = inode.exclude();
        if !inode.is_regular() || content.dead || inode.nlink() != 0 || !inode.is_unused() {
            return Ok(false);
        }
        let map = self.extents(inode, &mut content)?;
        let Some(start) = map.start_of_last(0, EXTENTS_AT_ONCE) else {
            return Ok(false);
        };
        let mut txn = Txn::new();
        let mut touched = Touched::new();
        let removed = map.remove(start, map.end(), &mut touched);
        txn.free(inode.ino, &removed);
        txn.extents(inode.ino, map, &touched);
        let blocks = map.blocks();
        txn.inode(inode, |record| record.blocks = blocks);
        self.apply(txn).inspect_err(|_| self.revert(inode, &mut content, &touched))?;
        Ok(true)
    }

    /// Frees what a crash or a forced unmount left behind.
    pub(super) fn reap_leftovers(&self) -> Result<()> {
        let mut range = Key::orphans();
        loop {
            let records = self.scan(range.clone(), ORPHANS_AT_ONCE)?;
            let Some((last, _)) = records.last() else {
                return Ok(());
            };
            range.start = last.clone();
            range.start.push(0);
            for (key, _) in &records {
                if let Key::Orphan(ino) = Key::decode(key).map_err(super::dir::damaged)? {
                    self.reap_leftover(ino)?;
                }
            }
        }
    }

    fn reap_leftover(&self, ino: u64) -> Result<()> {
        match self.inode(ino) {
            Ok(inode) if inode.nlink() == 0 => self.reap_or_log(&inode),
            Ok(inode) => {
                return Err(FsError::with_context(
                    libc::EIO,
                    format!("inode {ino} is an orphan but has {} names; run `peerfs fsck`", inode.nlink()),
                ));
            }
            Err(error) if error.code() == libc::ENOENT => {
                let mut txn = Txn::new();
                txn.delete(Key::Orphan(ino));
                self.apply(txn)?;
            }
            Err(error) => return Err(error),
        }
        self.cache.evict(ino, self.committed.load(Ordering::Acquire));
        Ok(())
    }
}
