//! The bridge to the store: one [`Txn`] per operation, and typed reads.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Core;
use super::extent_map::{ExtentMap, Segment, Touched, device_ranges};
use super::inode::Inode;
use crate::error::{FsError, Result};
use crate::store::{Allocation, Batch, BlockRange, Bytes, Inode as InodeRecord, Key, Record, StoreError};
use crate::types::Ino;

impl From<StoreError> for FsError {
    fn from(error: StoreError) -> Self {
        match error.errno() {
            errno @ (libc::ENOSPC | libc::EROFS) => FsError::errno(errno),
            errno => FsError::with_context(errno, error.to_string()),
        }
    }
}

/// The changes of one operation. Inodes in it are encoded when it is applied, once each;
/// the caller holds their content locks exclusively until then.
#[derive(Default)]
pub(super) struct Txn {
    batch: Batch,
    inodes: Vec<Arc<Inode>>,
    /// The file that blocks are taken off.
    freed_of: Option<Ino>,
}

impl Txn {
    pub(super) fn new() -> Self {
        Self::default()
    }

    pub(super) fn put<R: Record>(&mut self, key: Key<'_>, record: &R) {
        self.batch.put(&key, record);
    }

    pub(super) fn put_raw(&mut self, key: Key<'_>, value: &[u8]) {
        self.batch.put_raw(&key, value);
    }

    pub(super) fn delete(&mut self, key: Key<'_>) {
        self.batch.delete(&key);
    }

    /// Changes an inode.
    pub(super) fn inode(&mut self, inode: &Arc<Inode>, change: impl FnOnce(&mut InodeRecord)) {
        change(&mut inode.attributes().record);
        if !self.inodes.iter().any(|known| Arc::ptr_eq(known, inode)) {
            self.inodes.push(inode.clone());
        }
    }

    /// Writes the extent records that changed.
    pub(super) fn extents(&mut self, ino: Ino, map: &ExtentMap, touched: &Touched) {
        for &file_block in touched {
            match map.get(file_block) {
                Some(extent) => self.batch.put_extent(ino, file_block, extent),
                None => self.batch.delete(&Key::Extent(ino, file_block)),
            }
        }
    }

    /// The blocks belong to the records of this change.
    pub(super) fn claim(&mut self, allocation: Allocation) {
        self.batch.claim(allocation);
    }

    /// The file no longer owns the blocks of removed stretches. One file a transaction.
    pub(super) fn free(&mut self, ino: Ino, removed: &[Segment]) {
        for range in device_ranges(removed) {
            self.freed_of = Some(ino);
            self.batch.free(range);
        }
    }

    /// An extent of this change owns the blocks beside those that did already.
    pub(super) fn share(&mut self, range: BlockRange) {
        self.batch.share(range);
    }
}

impl Core {
    /// A typed record.
    pub(super) fn get<R: Record>(&self, key: Key<'_>) -> Result<Option<R>> {
        Ok(self.volume.get(&key)?)
    }

    /// A record whose value is bytes.
    pub(super) fn get_raw(&self, key: Key<'_>) -> Result<Option<Bytes>> {
        Ok(self.volume.get_raw(&key)?)
    }

    /// The first records of a range.
    pub(super) fn scan(&self, range: std::ops::Range<Vec<u8>>, limit: usize) -> Result<Vec<(Vec<u8>, Bytes)>> {
        Ok(self.volume.scan(range, limit)?)
    }

    /// Makes the changes, all at once.
    pub(super) fn apply(&self, txn: Txn) -> Result<()> {
        let Txn { mut batch, inodes, freed_of } = txn;
        for inode in &inodes {
            let mut attributes = inode.attributes();
            batch.put_inode(&attributes.record);
            attributes.dirty = false;
        }
        let seq = match freed_of {
            Some(ino) => self.apply_freeing(ino, batch)?,
            None => self.volume.apply(batch)?,
        };
        for inode in &inodes {
            inode.changed_in.fetch_max(seq, Ordering::AcqRel);
        }
        Ok(())
    }
}
