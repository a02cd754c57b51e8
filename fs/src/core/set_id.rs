//! What changes of a file do to its set-user-id and set-group-id bits.

use std::sync::Arc;

use super::inode::Inode;
use super::meta::Txn;
use crate::store::Inode as Record;
use crate::types::Caller;

const SET_ID: u32 = libc::S_ISUID | libc::S_ISGID;

/// There is a bit that a change could end.
pub(super) fn is_set(mode: u32) -> bool {
    mode & SET_ID != 0
}

/// The mode after a change by somebody who is not known: set-user-id goes, and set-group-id where the group may execute.
pub(super) fn without(mode: u32) -> u32 {
    let mode = mode & !libc::S_ISUID;
    if mode & libc::S_IXGRP != 0 { mode & !libc::S_ISGID } else { mode }
}

/// The mode after a change by a caller: as [`without`], and set-group-id goes for those outside the group too, as the
/// kernel has it (`setattr_should_drop_sgid`).
fn without_for(caller: Caller, record: &Record) -> u32 {
    let mode = without(record.mode);
    if mode & libc::S_ISGID != 0 && !is_in_group(caller, record.gid) { mode & !libc::S_ISGID } else { mode }
}

/// The caller belongs to the group, or may do as if: root. A caller that this process cannot see has no supplementary groups.
pub(super) fn is_in_group(caller: Caller, gid: u32) -> bool {
    caller.uid == 0 || caller.gid == gid || peerfs_sys::supplementary_groups(caller.tid).is_ok_and(|groups| groups.contains(&gid))
}

/// Ends the bits after a change by a caller. The content lock is held exclusively.
pub(super) fn end(txn: &mut Txn, inode: &Arc<Inode>, caller: Caller) {
    let record = inode.attributes().record.clone();
    if is_set(record.mode) {
        let mode = without_for(caller, &record);
        txn.inode(inode, |record| record.mode = mode);
    }
}

/// As [`end`], where the request does not say whether the caller has the privilege to keep all of them: root is taken to have it.
pub(super) fn end_unless_root(txn: &mut Txn, inode: &Arc<Inode>, caller: Caller) {
    if caller.uid != 0 {
        end(txn, inode, caller);
    }
}
