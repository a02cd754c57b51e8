//! Rename: two directories, up to two inodes, one batch.

use std::sync::Arc;
use std::sync::RwLockWriteGuard;
use std::sync::atomic::Ordering;

use super::Core;
use super::inode::{Content, Inode, stamp_change, stamp_content};
use super::meta::Txn;
use super::namespace::{NewInode, check_name};
use super::time::now;
use crate::error::{FsError, Result};
use crate::store::DirentByName;
use crate::sync::lock;
use crate::types::{Caller, Ino, ROOT_INO, RenameMode};

/// Deeper than any tree that could be made; a parent chain this long is a cycle in a damaged image.
const MAX_DEPTH: usize = 1 << 20;

/// One end of a rename.
struct Side<'a> {
    parent: &'a Arc<Inode>,
    name: &'a [u8],
}

/// What is moved, and what is in the way or exchanged.
struct Plan {
    moved: Arc<Inode>,
    source: DirentByName,
    other: Option<(Arc<Inode>, DirentByName)>,
}

impl Core {
    pub(super) fn do_rename(
        &self,
        caller: Caller,
        (parent, name): (Ino, &[u8]),
        (new_parent, new_name): (Ino, &[u8]),
        mode: RenameMode,
    ) -> Result<()> {
        check_name(name)?;
        check_name(new_name)?;
        self.admit_change()?;
        let across = parent != new_parent;
        let tree_lock = across.then(|| lock(&self.rename_lock));
        let (from, to) = (self.directory(parent)?, self.directory(new_parent)?);
        let parent_locks = self.lock_parents(&from, &to)?;
        let from = Side { parent: &from, name };
        let to = Side { parent: &to, name: new_name };
        let Some(plan) = self.plan_rename(&from, &to, mode)? else {
            return Ok(());
        };
        let child_locks = lock_children(&plan);
        if mode == RenameMode::Exchange {
            self.exchange(&from, &to, &plan)?;
        } else {
            self.replace(&from, &to, &plan, mode.leaves_whiteout().then_some(caller))?;
        }
        drop(child_locks);
        drop(parent_locks);
        drop(tree_lock);
        if let Some((victim, _)) = plan.other
            && mode != RenameMode::Exchange
        {
            self.retire(victim);
        }
        Ok(())
    }

    /// Locks one or two directories, an ancestor before its descendant.
    fn lock_parents<'a>(&self, from: &'a Arc<Inode>, to: &'a Arc<Inode>) -> Result<Vec<RwLockWriteGuard<'a, Content>>> {
        if from.ino == to.ino {
            return Ok(vec![from.exclude()]);
        }
        let from_first = if self.is_ancestor(from, to)? {
            true
        } else if self.is_ancestor(to, from)? {
            false
        } else {
            from.ino < to.ino
        };
        let (first, second) = if from_first { (from, to) } else { (to, from) };
        Ok(vec![first.exclude(), second.exclude()])
    }

    /// `directory` is `below` or above it. The rename lock is held.
    fn is_ancestor(&self, directory: &Inode, below: &Arc<Inode>) -> Result<bool> {
        let mut at = below.clone();
        for _ in 0..MAX_DEPTH {
            if at.ino == directory.ino {
                return Ok(true);
            }
            if at.ino == ROOT_INO {
                return Ok(false);
            }
            at = self.inode(at.parent.load(Ordering::Acquire))?;
        }
        Err(FsError::with_context(libc::EIO, format!("directory {} is its own ancestor; run `peerfs fsck`", below.ino)))
    }

    /// Checks everything. `None`: both names are the same file already.
    fn plan_rename(&self, from: &Side<'_>, to: &Side<'_>, mode: RenameMode) -> Result<Option<Plan>> {
        self.check_alive(to.parent)?;
        let source = self.existing_entry(from.parent, from.name)?;
        let target = self.entry(to.parent, to.name)?;
        match (mode, &target) {
            (mode, Some(_)) if mode.needs_free_name() => return Err(FsError::errno(libc::EEXIST)),
            (RenameMode::Exchange, None) => return Err(FsError::errno(libc::ENOENT)),
            (_, Some(target)) if target.ino == source.ino => return Ok(None),
            _ => {}
        }
        let moved = self.inode(source.ino)?;
        let other = match target {
            Some(entry) => Some((self.inode(entry.ino)?, entry)),
            None => None,
        };
        let across = from.parent.ino != to.parent.ino;
        if across && moved.is_directory() && self.is_ancestor(&moved, to.parent)? {
            return Err(FsError::errno(libc::EINVAL));
        }
        if let Some((other, _)) = &other {
            let in_the_way = across && other.is_directory() && self.is_ancestor(other, from.parent)?;
            check_target(&moved, other, in_the_way, mode)?;
        }
        if across && moved.is_directory() && other.is_none() {
            self.check_room_for_subdirectory(to.parent)?;
        }
        Ok(Some(Plan { moved, source, other }))
    }

    /// `marked_by`: the old name stays as a whiteout that belongs to the caller.
    fn replace(&self, from: &Side<'_>, to: &Side<'_>, plan: &Plan, marked_by: Option<Caller>) -> Result<()> {
        let mut txn = Txn::new();
        let whiteout = match marked_by {
            Some(caller) => Some(self.new_inode(&mut txn, from.parent, &NewInode::whiteout(caller))?),
            None => None,
        };
        match &whiteout {
            Some(whiteout) => txn.put_entry(from.parent, from.name, plan.source.cookie, whiteout.ino, whiteout.kind),
            None => txn.remove_entry(from.parent, from.name, plan.source.cookie),
        }
        match &plan.other {
            Some((victim, entry)) => {
                if victim.is_directory() {
                    self.check_empty(victim)?;
                    txn.inode(to.parent, |record| record.nlink = record.nlink.saturating_sub(1));
                }
                txn.put_entry(to.parent, to.name, entry.cookie, plan.moved.ino, plan.moved.kind);
                self.drop_link(&mut txn, victim);
            }
            None => txn.link(to.parent, to.name, &plan.moved),
        }
        move_child(&mut txn, &plan.moved, from.parent, to.parent);
        finish(&mut txn, from, to);
        match whiteout {
            Some(whiteout) => {
                self.apply_with_new(txn, &whiteout)?;
                self.cache.mark_idle(whiteout.ino);
            }
            None => self.apply(txn)?,
        }
        Ok(())
    }

    fn exchange(&self, from: &Side<'_>, to: &Side<'_>, plan: &Plan) -> Result<()> {
        let Some((other, entry)) = &plan.other else {
            return Err(FsError::errno(libc::ENOENT));
        };
        let mut txn = Txn::new();
        txn.put_entry(to.parent, to.name, entry.cookie, plan.moved.ino, plan.moved.kind);
        txn.put_entry(from.parent, from.name, plan.source.cookie, other.ino, other.kind);
        move_child(&mut txn, &plan.moved, from.parent, to.parent);
        move_child(&mut txn, other, to.parent, from.parent);
        finish(&mut txn, from, to);
        self.apply(txn)
    }
}

/// `in_the_way`: the target lies above the source.
fn check_target(moved: &Inode, other: &Inode, in_the_way: bool, mode: RenameMode) -> Result<()> {
    let errno = match (mode, moved.is_directory(), other.is_directory()) {
        (RenameMode::Exchange, _, _) if in_the_way => libc::EINVAL,
        (RenameMode::Exchange, _, _) => return Ok(()),
        (_, true, false) => libc::ENOTDIR,
        (_, false, true) => libc::EISDIR,
        _ if in_the_way => libc::ENOTEMPTY,
        _ => return Ok(()),
    };
    Err(FsError::errno(errno))
}

/// Locks the moved and the other inode by number.
fn lock_children(plan: &Plan) -> Vec<RwLockWriteGuard<'_, Content>> {
    let mut children = vec![&plan.moved];
    children.extend(plan.other.iter().map(|(other, _)| other));
    children.sort_by_key(|inode| inode.ino);
    children.into_iter().map(|inode| inode.exclude()).collect()
}

/// A child changes its directory.
fn move_child(txn: &mut Txn, child: &Arc<Inode>, from: &Arc<Inode>, to: &Arc<Inode>) {
    let now = now();
    txn.inode(child, |record| {
        stamp_change(record, now);
        if child.is_directory() {
            record.parent = to.ino;
        }
    });
    if child.is_directory() && from.ino != to.ino {
        child.parent.store(to.ino, Ordering::Release);
        txn.inode(from, |record| record.nlink = record.nlink.saturating_sub(1));
        txn.inode(to, |record| record.nlink = record.nlink.saturating_add(1));
    }
}

fn finish(txn: &mut Txn, from: &Side<'_>, to: &Side<'_>) {
    let now = now();
    txn.inode(from.parent, |record| stamp_content(record, now));
    txn.inode(to.parent, |record| stamp_content(record, now));
}
