//! The changes of one operation.

use super::BlockRange;
use super::alloc::Allocation;
use super::key::Key;
use super::kv::Ops;
use super::records::{DirentByCookie, DirentByName, Extent, Inode, Record};

/// Puts, deletes and changes of block ownership that happen together or not at all.
///
/// Blocks in claimed allocations go back to the allocator if the batch is dropped.
#[derive(Debug, Default)]
pub struct Batch {
    pub(super) ops: Ops,
    pub(super) owners: Owners,
}

/// Who owns blocks from now on, and who no longer does.
#[derive(Debug, Default)]
pub(super) struct Owners {
    pub(super) claimed: Vec<Allocation>,
    pub(super) shared: Vec<BlockRange>,
    pub(super) quarantined: Vec<BlockRange>,
    pub(super) released: Vec<BlockRange>,
    pub(super) freed: Vec<BlockRange>,
}

impl Batch {
    /// No changes.
    pub fn new() -> Self {
        Self::default()
    }

    /// True when applying it would change nothing.
    pub fn is_empty(&self) -> bool {
        let Owners { claimed, shared, quarantined, released, freed } = &self.owners;
        let unchanged = [shared, quarantined, released, freed].iter().all(|ranges| ranges.is_empty());
        self.ops.is_empty() && claimed.is_empty() && unchanged
    }

    /// Sets a record.
    pub fn put<T: Record>(&mut self, key: &Key<'_>, value: &T) {
        self.put_raw(key, &value.encode());
    }

    /// Sets a record whose value is bytes: an attribute, the target of a link, an orphan (empty).
    pub fn put_raw(&mut self, key: &Key<'_>, value: &[u8]) {
        self.ops.push((key.encode(), Some(value.into())));
    }

    /// Deletes a record.
    pub fn delete(&mut self, key: &Key<'_>) {
        self.ops.push((key.encode(), None));
    }

    /// Sets an inode.
    pub fn put_inode(&mut self, inode: &Inode) {
        self.put(&Key::Inode(inode.ino), inode);
    }

    /// Sets an extent of a file.
    pub fn put_extent(&mut self, ino: u64, file_block: u64, extent: &Extent) {
        self.put(&Key::Extent(ino, file_block), extent);
    }

    /// Sets both records of a directory entry.
    pub fn put_dirent(&mut self, parent: u64, name: &[u8], entry: DirentByName) {
        self.put(&Key::DirentName(parent, name), &entry);
        let by_cookie = DirentByCookie { ino: entry.ino, kind: entry.kind, name: name.to_vec() };
        self.put(&Key::DirentCookie(parent, entry.cookie), &by_cookie);
    }

    /// Deletes both records of a directory entry.
    pub fn delete_dirent(&mut self, parent: u64, name: &[u8], cookie: u64) {
        self.delete(&Key::DirentName(parent, name));
        self.delete(&Key::DirentCookie(parent, cookie));
    }

    /// The batch's records own these blocks from now on.
    pub fn claim(&mut self, allocation: Allocation) {
        self.owners.claimed.push(allocation);
    }

    /// One of the batch's extents no longer owns these blocks. Without another owner they are reused after its commit.
    pub fn free(&mut self, range: BlockRange) {
        if range.count > 0 {
            self.owners.freed.push(range);
        }
    }

    /// One of the batch's extents owns these blocks beside those that did already.
    pub fn share(&mut self, range: BlockRange) {
        if range.count > 0 {
            self.owners.shared.push(range);
        }
    }

    /// As [`Batch::free`], but a pin still reaches the blocks: the quarantine owns them instead, until [`Batch::release`]
    /// or the next mount.
    pub fn quarantine(&mut self, range: BlockRange) {
        if range.count > 0 {
            self.owners.quarantined.push(range);
        }
    }

    /// The quarantine no longer owns these blocks, which are all in it.
    pub fn release(&mut self, range: BlockRange) {
        if range.count > 0 {
            self.owners.released.push(range);
        }
    }

    /// What it frees, taken out of it.
    pub fn take_freed(&mut self) -> Vec<BlockRange> {
        std::mem::take(&mut self.owners.freed)
    }
}
