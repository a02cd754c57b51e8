//! Attributes, and changes of size.

use std::sync::Arc;

use peerfs_abi::Trigger;
use peerfs_blockdev::BLOCK_BYTES;
use peerfs_p2p::Range;

use super::cow::{Change, Relocation};
use super::inode::{Content, Inode, stamp_change, stamp_content};
use super::io::{MAX_FILE_BYTES, block_of, blocks_for, changed_tail};
use super::meta::Txn;
use super::orphans::EXTENTS_AT_ONCE;
use super::time::{now, resolve, to_record};
use super::{Core, FsError, Result, set_id};
use crate::store::Inode as Record;
use crate::types::{Attr, Caller, Ino, SetAttr, Timestamp};

/// Permission bits.
const PERMISSIONS: u32 = 0o7777;

impl Core {
    pub(super) fn do_setattr(&self, caller: Caller, ino: Ino, set: SetAttr) -> Result<Attr> {
        self.admit_change()?;
        let inode = self.inode(ino)?;
        if let Some(size) = set.size {
            check_resizable(&inode, size)?;
            self.resize(&inode, size, |txn| {
                set_id::end_unless_root(txn, &inode, caller);
                self.change_attributes(txn, caller, &inode, &set)
            })?;
        } else {
            let _content = inode.exclude();
            let mut txn = Txn::new();
            self.change_attributes(&mut txn, caller, &inode, &set)?;
            self.apply(txn)?;
        }
        Ok(inode.attr())
    }

    fn change_attributes(&self, txn: &mut Txn, caller: Caller, inode: &Arc<Inode>, set: &SetAttr) -> Result<()> {
        if let Some(mode) = set.mode {
            self.chmod_acl(txn, inode, mode)?;
        } else if !inode.is_directory() && (set.uid.is_some() || set.gid.is_some() || changes_nothing(caller, inode, set)) {
            set_id::end(txn, inode, caller);
        }
        let now = now();
        txn.inode(inode, |record| set_attributes(record, set, now));
        Ok(())
    }

    /// Truncates or extends a file. `also` adds to the same batch.
    pub(super) fn resize(&self, inode: &Arc<Inode>, new_size: u64, also: impl FnOnce(&mut Txn) -> Result<()>) -> Result<()> {
        let mut also = Some(also);
        let mut attempt = || self.relocating(inode, |relocation| self.resize_once(inode, new_size, relocation, &mut also));
        match attempt() {
            // The last block may have to be copied.
            Err(error) if error.code() == libc::ENOSPC => {
                self.reclaim();
                attempt()
            }
            result => result,
        }
    }

    /// `also` is taken once nothing can ask for another try.
    fn resize_once(
        &self,
        inode: &Arc<Inode>,
        new_size: u64,
        relocation: &mut Relocation,
        also: &mut Option<impl FnOnce(&mut Txn) -> Result<()>>,
    ) -> Result<()> {
        let coherence = self.coherence();
        let beyond = Range { start: new_size, end: u64::MAX };
        loop {
            let size = inode.size();
            let shrinks = new_size <= size;
            let _closed = match shrinks {
                true => Some(coherence.close_range(inode.ino, beyond, Trigger::Truncate)),
                false => changed_tail(size, new_size).map(|tail| coherence.partial_write(inode.ino, tail)),
            };
            if shrinks && let Err(error) = self.shorten_to(inode, new_size) {
                coherence.size_changed(inode.ino, size, inode.size());
                return Err(error);
            }
            let mut content = inode.exclude();
            let old_size = inode.size();
            if new_size <= old_size && !shrinks {
                // It grew meanwhile, so blocks go away after all: close the range first.
                continue;
            }
            let mut change = Change::new(relocation);
            let outcome = self.resize_locked(inode, &mut content, (old_size, new_size), &mut change).and_then(|()| {
                let also = also.take().map_or(Ok(()), |also| also(&mut change.txn));
                also.and_then(|()| self.apply(change.txn))
            });
            if outcome.is_err() {
                self.revert(inode, &mut content, &change.touched);
            }
            content.reservation = None;
            drop(content);
            outcome?;
            if new_size != old_size || size != old_size {
                coherence.size_changed(inode.ino, size, new_size);
            }
            return Ok(());
        }
    }

    /// Takes very many extents behind the new end off in several transactions, the last first, and each time moves the
    /// file's end there: a crash in between finds it shortened in part. Leaves what one transaction can hold.
    fn shorten_to(&self, inode: &Arc<Inode>, new_size: u64) -> Result<()> {
        loop {
            self.admit_change()?;
            let mut content = inode.exclude();
            let map = self.extents(inode, &mut content)?;
            let Some(start) = map.start_of_last(blocks_for(new_size), EXTENTS_AT_ONCE) else {
                return Ok(());
            };
            let mut relocation = Relocation::default();
            let mut change = Change::new(&mut relocation);
            self.give_up(inode, map, start, u64::MAX, &mut change);
            change.txn.extents(inode.ino, map, &change.touched);
            let blocks = map.blocks();
            change.txn.inode(inode, |record| {
                record.size = record.size.min(start * BLOCK_BYTES);
                record.blocks = blocks;
                stamp_content(record, now());
            });
            self.apply(change.txn).inspect_err(|_| self.revert(inode, &mut content, &change.touched))?;
        }
    }

    fn resize_locked(
        &self,
        inode: &Arc<Inode>,
        content: &mut Content,
        (old_size, new_size): (u64, u64),
        change: &mut Change<'_>,
    ) -> Result<()> {
        if new_size > old_size {
            self.zero_tail(inode, content, old_size, change)?;
        } else if !new_size.is_multiple_of(BLOCK_BYTES) {
            // A window zeros what lies behind the end of its file: all owners of a block must agree where that is.
            self.unshare(inode, content, block_of(new_size), blocks_for(new_size), change)?;
        }
        let map = self.extents(inode, content)?;
        if new_size <= old_size {
            self.give_up(inode, map, blocks_for(new_size), u64::MAX, change);
        }
        change.txn.extents(inode.ino, map, &change.touched);
        let blocks = map.blocks();
        change.txn.inode(inode, |record| {
            record.size = new_size;
            record.blocks = blocks;
            stamp_content(record, now());
        });
        Ok(())
    }

    /// The side effects of a write that did not pass through here: times, and no more set-id bits.
    pub(super) fn mark_written(&self, inode: &Arc<Inode>) -> Result<()> {
        let _content = inode.exclude();
        let mut txn = Txn::new();
        txn.inode(inode, |record| {
            stamp_content(record, now());
            record.mode = set_id::without(record.mode);
        });
        self.apply(txn)
    }
}

/// A chown(2) that names neither owner nor group arrives as a change of nothing, and the kernel leaves set-id bits to us. So
/// does the beginning of a write by somebody else, whose WRITE then says what to do: only the owner may change the mode.
fn changes_nothing(caller: Caller, inode: &Inode, set: &SetAttr) -> bool {
    let nothing = set.size.is_none() && set.atime.is_none() && set.mtime.is_none() && set.ctime.is_none();
    nothing && caller.uid != 0 && caller.uid == inode.attributes().record.uid
}

fn check_resizable(inode: &Inode, size: u64) -> Result<()> {
    if inode.is_directory() {
        return Err(FsError::errno(libc::EISDIR));
    }
    if !inode.is_regular() {
        return Err(FsError::errno(libc::EINVAL));
    }
    if size > MAX_FILE_BYTES {
        return Err(FsError::errno(libc::EFBIG));
    }
    Ok(())
}

fn set_attributes(record: &mut Record, set: &SetAttr, now: Timestamp) {
    if let Some(mode) = set.mode {
        record.mode = record.mode & !PERMISSIONS | mode & PERMISSIONS;
    }
    if let Some(uid) = set.uid {
        record.uid = uid;
    }
    if let Some(gid) = set.gid {
        record.gid = gid;
    }
    if let Some(time) = set.atime {
        record.atime = to_record(resolve(time, now));
    }
    if let Some(time) = set.mtime {
        record.mtime = to_record(resolve(time, now));
    }
    match set.ctime {
        Some(time) => record.ctime = to_record(time),
        None => stamp_change(record, now),
    }
}
