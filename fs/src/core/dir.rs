//! Names: look-up, making and removing, listing.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Core;
use super::handles::OpenDir;
use super::inode::{Inode, stamp_change, stamp_content};
use super::meta::Txn;
use super::namespace::{FIRST_COOKIE, MAX_LINKS, NewInode, check_name};
use super::time::now;
use crate::error::{FsError, Result};
use crate::store::{DirentByCookie, FileKind, Key, Record, SYMLINK_BYTES};
use crate::types::{Attr, Caller, DirEntry, DirSink, Ino};

/// Entries read at a time by readdir.
const LISTED_AT_ONCE: usize = 128;

struct Listed {
    cookie: u64,
    entry: DirentByCookie,
    inode: Option<Arc<Inode>>,
}

impl Core {
    pub(super) fn do_lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr> {
        match name {
            b"." => return self.look_up_itself(self.inode(parent)?),
            b".." => return self.look_up_itself(self.inode(self.directory(parent)?.parent.load(Ordering::Acquire))?),
            _ => check_name(name)?,
        }
        let parent = self.directory(parent)?;
        // Shared, so that the inode cannot lose its name and be freed before the look-up counts.
        let _shared = parent.share();
        let inode = self.inode(self.existing_entry(&parent, name)?.ino)?;
        inode.lookups.fetch_add(1, Ordering::AcqRel);
        Ok(inode.attr())
    }

    /// Of whatever a file handle names, which is not always a directory and may be gone.
    fn look_up_itself(&self, inode: Arc<Inode>) -> Result<Attr> {
        let _shared = inode.share();
        self.check_alive(&inode)?;
        inode.lookups.fetch_add(1, Ordering::AcqRel);
        Ok(inode.attr())
    }

    pub(super) fn do_symlink(&self, caller: Caller, parent: Ino, name: &[u8], target: &[u8]) -> Result<Attr> {
        if target.is_empty() {
            return Err(FsError::errno(libc::ENOENT));
        }
        if target.len() > SYMLINK_BYTES {
            return Err(FsError::errno(libc::ENAMETOOLONG));
        }
        let new = NewInode { caller, mode: libc::S_IFLNK | 0o777, rdev: 0, target: Some(target) };
        Ok(self.make(parent, name, new)?.1)
    }

    pub(super) fn do_readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        let inode = self.inode(ino)?;
        if inode.kind != FileKind::Symlink {
            return Err(FsError::errno(libc::EINVAL));
        }
        let target = self
            .get_raw(Key::Symlink(ino))?
            .ok_or_else(|| FsError::with_context(libc::EIO, format!("symbolic link {ino} has no target; run `peerfs fsck`")))?;
        self.accessed(&inode);
        Ok(target.to_vec())
    }

    pub(super) fn do_link(&self, ino: Ino, new_parent: Ino, new_name: &[u8]) -> Result<Attr> {
        check_name(new_name)?;
        self.admit_change()?;
        self.admit_growth()?;
        let inode = self.inode(ino)?;
        if inode.is_directory() {
            return Err(FsError::errno(libc::EPERM));
        }
        let parent = self.directory(new_parent)?;
        let _parent_lock = parent.exclude();
        self.check_alive(&parent)?;
        if self.entry(&parent, new_name)?.is_some() {
            return Err(FsError::errno(libc::EEXIST));
        }
        let _inode_lock = inode.exclude();
        match inode.nlink() {
            0 => return Err(FsError::errno(libc::ENOENT)),
            MAX_LINKS.. => return Err(FsError::errno(libc::EMLINK)),
            _ => {}
        }
        let mut txn = Txn::new();
        txn.link(&parent, new_name, &inode);
        txn.inode(&parent, |record| stamp_content(record, now()));
        txn.inode(&inode, |record| {
            record.nlink += 1;
            stamp_change(record, now());
        });
        self.apply(txn)?;
        inode.lookups.fetch_add(1, Ordering::AcqRel);
        Ok(inode.attr())
    }

    pub(super) fn do_unlink(&self, parent: Ino, name: &[u8]) -> Result<()> {
        check_name(name)?;
        self.admit_change()?;
        let parent = self.directory(parent)?;
        let parent_lock = parent.exclude();
        let entry = self.existing_entry(&parent, name)?;
        let inode = self.inode(entry.ino)?;
        if inode.is_directory() {
            return Err(FsError::errno(libc::EISDIR));
        }
        let inode_lock = inode.exclude();
        let mut txn = Txn::new();
        txn.remove_entry(&parent, name, entry.cookie);
        txn.inode(&parent, |record| stamp_content(record, now()));
        self.drop_link(&mut txn, &inode);
        let applied = self.apply(txn);
        drop(inode_lock);
        drop(parent_lock);
        self.retire(inode);
        applied
    }

    pub(super) fn do_rmdir(&self, parent: Ino, name: &[u8]) -> Result<()> {
        match name {
            b"." => return Err(FsError::errno(libc::EINVAL)),
            b".." => return Err(FsError::errno(libc::ENOTEMPTY)),
            _ => check_name(name)?,
        }
        self.admit_change()?;
        let parent = self.directory(parent)?;
        let parent_lock = parent.exclude();
        let entry = self.existing_entry(&parent, name)?;
        let inode = self.directory(entry.ino)?;
        let inode_lock = inode.exclude();
        self.check_empty(&inode)?;
        let mut txn = Txn::new();
        txn.remove_entry(&parent, name, entry.cookie);
        txn.inode(&parent, |record| {
            record.nlink = record.nlink.saturating_sub(1);
            stamp_content(record, now());
        });
        self.drop_link(&mut txn, &inode);
        let applied = self.apply(txn);
        drop(inode_lock);
        drop(parent_lock);
        self.retire(inode);
        applied
    }

    pub(super) fn do_readdir(&self, open: &OpenDir, cookie: u64, plus: bool, sink: DirSink<'_>) -> Result<()> {
        let directory = &open.inode;
        if !open.no_atime {
            self.accessed(directory);
        }
        if cookie < 1 && !self.list_dot(directory, 1, plus, sink)? {
            return Ok(());
        }
        if cookie < 2 && !self.list_dot(directory, 2, plus, sink)? {
            return Ok(());
        }
        let end = open.end_of_listing(cookie);
        let mut next = cookie.saturating_add(1).max(FIRST_COOKIE);
        while next < end {
            let listed = self.list_some(directory, next..end, plus)?;
            let Some(last) = listed.last() else {
                return Ok(());
            };
            next = last.cookie.saturating_add(1);
            if !self.deliver(listed, sink) {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Delivers `.` (cookie 1) or `..` (cookie 2).
    fn list_dot(&self, directory: &Inode, cookie: u64, plus: bool, sink: DirSink<'_>) -> Result<bool> {
        let (name, ino): (&[u8], Ino) = match cookie {
            1 => (b".", directory.ino),
            _ => (b"..", directory.parent.load(Ordering::Acquire)),
        };
        let attr = match plus {
            true => Some(self.inode(ino)?.attr()),
            false => None,
        };
        Ok(sink(&DirEntry { ino, kind: libc::S_IFDIR, cookie, name, attr: attr.as_ref() }))
    }

    /// The next entries. With `plus` each inode's look-up is counted in advance.
    fn list_some(&self, directory: &Inode, cookies: Range<u64>, plus: bool) -> Result<Vec<Listed>> {
        let _shared = directory.share();
        let records = self.scan(Key::cookies_of(directory.ino, cookies), LISTED_AT_ONCE)?;
        let mut listed = Vec::with_capacity(records.len());
        for (key, value) in records {
            let Key::DirentCookie(_, cookie) = Key::decode(&key).map_err(damaged)? else {
                continue;
            };
            let entry = DirentByCookie::decode(&value).map_err(damaged)?;
            listed.push(Listed { cookie, entry, inode: None });
        }
        if plus {
            for one in &mut listed {
                // An entry that names no inode is for fsck; the others stay readable.
                one.inode = self.inode(one.entry.ino).ok();
                if let Some(inode) = &one.inode {
                    inode.lookups.fetch_add(1, Ordering::AcqRel);
                }
            }
        }
        Ok(listed)
    }

    /// Puts entries into the sink; takes back the look-ups of those that did not fit.
    fn deliver(&self, listed: Vec<Listed>, sink: DirSink<'_>) -> bool {
        let mut fits = true;
        for one in listed {
            if fits {
                let attr = one.inode.as_ref().map(|inode| inode.attr());
                fits = sink(&DirEntry {
                    ino: one.entry.ino,
                    kind: one.entry.kind.mode_bits(),
                    cookie: one.cookie,
                    name: &one.entry.name,
                    attr: attr.as_ref(),
                });
                if fits {
                    continue;
                }
            }
            if let Some(inode) = one.inode {
                drop(inode);
                self.forget_lookups(one.entry.ino, 1);
            }
        }
        fits
    }
}

/// A record that does not decode.
pub(super) fn damaged(error: crate::store::RecordError) -> FsError {
    crate::store::StoreError::from(error).into()
}
