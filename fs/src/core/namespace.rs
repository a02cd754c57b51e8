//! What all changes of names share: checks, entries, new inodes.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Core;
use super::inode::{Inode, attr_of, stamp_content};
use super::meta::Txn;
use super::time::{now, to_record};
use crate::error::{FsError, Result};
use crate::store::{DirentByCookie, DirentByName, FileKind, Inode as Record, Key, NAME_BYTES};
use crate::types::{Attr, Caller, Ino};

/// Most hard links of a file.
pub(super) const MAX_LINKS: u32 = 65_000;
/// Most subdirectories of a directory, and then some.
const MAX_DIRECTORY_LINKS: u32 = u32::MAX - 1;
/// Size that directories report, in bytes.
const DIRECTORY_SIZE: u64 = 4096;
/// Cookies 1 and 2 are those of `.` and `..`.
pub(super) const FIRST_COOKIE: u64 = 3;

/// A name that may be made, removed or found. `.` and `..` are neither.
pub(super) fn check_name(name: &[u8]) -> Result<()> {
    match name {
        b"" => Err(FsError::errno(libc::ENOENT)),
        b"." | b".." => Err(FsError::errno(libc::EINVAL)),
        _ if name.len() > NAME_BYTES => Err(FsError::errno(libc::ENAMETOOLONG)),
        _ if name.contains(&b'/') || name.contains(&0) => Err(FsError::errno(libc::EINVAL)),
        _ => Ok(()),
    }
}

/// What a new inode is to be.
pub(super) struct NewInode<'a> {
    pub caller: Caller,
    /// Type and permission bits.
    pub mode: u32,
    pub rdev: u32,
    /// Target of a symbolic link.
    pub target: Option<&'a [u8]>,
}

impl NewInode<'_> {
    /// What overlay filesystems take for "there is nothing": a character device 0/0.
    pub(super) fn whiteout(caller: Caller) -> Self {
        NewInode { caller, mode: libc::S_IFCHR, rdev: 0, target: None }
    }
}

impl Core {
    /// The entry of a name. The directory's content lock is held.
    pub(super) fn entry(&self, parent: &Inode, name: &[u8]) -> Result<Option<DirentByName>> {
        let entry: Option<DirentByName> = self.get(Key::DirentName(parent.ino, name))?;
        if entry.is_some_and(|entry| entry.ino == parent.ino) {
            // Whoever goes on would lock the directory a second time.
            return Err(FsError::with_context(
                libc::EIO,
                format!("directory {} has an entry that names itself; run `peerfs fsck`", parent.ino),
            ));
        }
        Ok(entry)
    }

    /// The entry of a name that has to be there.
    pub(super) fn existing_entry(&self, parent: &Inode, name: &[u8]) -> Result<DirentByName> {
        self.entry(parent, name)?.ok_or(FsError::errno(libc::ENOENT))
    }

    /// It was not removed while somebody still had it.
    pub(super) fn check_alive(&self, inode: &Inode) -> Result<()> {
        if inode.nlink() == 0 {
            return Err(FsError::errno(libc::ENOENT));
        }
        Ok(())
    }

    /// It has no entries. Its content lock is held.
    pub(super) fn check_empty(&self, directory: &Inode) -> Result<()> {
        if self.scan(Key::names_of(directory.ino), 1)?.is_empty() { Ok(()) } else { Err(FsError::errno(libc::ENOTEMPTY)) }
    }

    /// One more subdirectory fits.
    pub(super) fn check_room_for_subdirectory(&self, directory: &Inode) -> Result<()> {
        if directory.nlink() >= MAX_DIRECTORY_LINKS {
            return Err(FsError::errno(libc::EMLINK));
        }
        Ok(())
    }

    /// Makes an inode and its name. Counts a look-up.
    pub(super) fn make(&self, parent: Ino, name: &[u8], new: NewInode<'_>) -> Result<(Arc<Inode>, Attr)> {
        check_name(name)?;
        self.admit_change()?;
        let parent = self.directory(parent)?;
        let parent_lock = parent.exclude();
        self.check_alive(&parent)?;
        if self.entry(&parent, name)?.is_some() {
            return Err(FsError::errno(libc::EEXIST));
        }
        let made = self.make_in(&parent, name, new);
        drop(parent_lock);
        made
    }

    /// As [`Core::make`], with the parent's content lock held and the name known to be free.
    pub(super) fn make_in(&self, parent: &Arc<Inode>, name: &[u8], new: NewInode<'_>) -> Result<(Arc<Inode>, Attr)> {
        if new.mode & libc::S_IFMT == libc::S_IFDIR {
            self.check_room_for_subdirectory(parent)?;
        }
        let mut txn = Txn::new();
        let inode = self.new_inode(&mut txn, parent, &new)?;
        txn.link(parent, name, &inode);
        txn.inode(parent, |record| {
            record.nlink += u32::from(inode.is_directory());
            stamp_content(record, now());
        });
        inode.lookups.store(1, Ordering::Release);
        self.apply_with_new(txn, &inode)?;
        let attr = inode.attr();
        self.sweep_if_many();
        Ok((inode, attr))
    }

    /// Applies what makes an inode. It is in memory before its number can be looked up by a file handle.
    pub(super) fn apply_with_new(&self, txn: Txn, inode: &Arc<Inode>) -> Result<()> {
        self.cache.insert(inode.clone());
        self.apply(txn).inspect_err(|_| self.cache.take_out(inode.ino))
    }

    /// An inode without a name yet, which belongs into the directory. The directory's content lock is held.
    pub(super) fn new_inode(&self, txn: &mut Txn, parent: &Inode, new: &NewInode<'_>) -> Result<Arc<Inode>> {
        self.admit_growth()?;
        let mut record = self.new_record(parent, new)?;
        let inherited = self.inherited_acl(parent, record.kind())?;
        if !inherited.is_some() && record.kind() != FileKind::Symlink {
            record.mode &= !(new.caller.umask & 0o777);
        }
        let inode = Arc::new(Inode::new(record));
        inherited.store(txn, &inode);
        txn.inode(&inode, |_| ());
        if let Some(target) = new.target {
            txn.put_raw(Key::Symlink(inode.ino), target);
        }
        Ok(inode)
    }

    fn new_record(&self, parent: &Inode, new: &NewInode<'_>) -> Result<Record> {
        let kind = FileKind::from_mode(new.mode).ok_or(FsError::errno(libc::EINVAL))?;
        let parent_attr = attr_of(&parent.attributes().record);
        let inherits_group = parent_attr.mode & libc::S_ISGID != 0;
        let mut mode = new.mode & (libc::S_IFMT | 0o7777);
        if inherits_group && kind == FileKind::Directory {
            mode |= libc::S_ISGID;
        }
        let now = to_record(now());
        Ok(Record {
            ino: self.numbers.next_ino(self)?,
            generation: 1,
            mode,
            uid: new.caller.uid,
            gid: if inherits_group { parent_attr.gid } else { new.caller.gid },
            nlink: if kind == FileKind::Directory { 2 } else { 1 },
            size: match kind {
                FileKind::Directory => DIRECTORY_SIZE,
                FileKind::Symlink => new.target.map_or(0, |target| target.len() as u64),
                _ => 0,
            },
            blocks: 0,
            atime: now,
            mtime: now,
            ctime: now,
            crtime: now,
            rdev: new.rdev.into(),
            flags: 0,
            next_cookie: FIRST_COOKIE,
            parent: if kind == FileKind::Directory { parent.ino } else { 0 },
        })
    }

    /// Takes one name off an inode; without the last the inode becomes an orphan.
    pub(super) fn drop_link(&self, txn: &mut Txn, inode: &Arc<Inode>) {
        let mut left = 0;
        txn.inode(inode, |record| {
            record.nlink = match record.kind() {
                FileKind::Directory => 0,
                _ => record.nlink.saturating_sub(1),
            };
            left = record.nlink;
            record.ctime = to_record(now());
        });
        if left == 0 {
            txn.put_raw(Key::Orphan(inode.ino), &[]);
        }
    }
}

impl Txn {
    /// Adds an entry at the end of a directory. Its content lock is held.
    pub(super) fn link(&mut self, parent: &Arc<Inode>, name: &[u8], inode: &Inode) {
        let mut cookie = FIRST_COOKIE;
        self.inode(parent, |record| {
            cookie = record.next_cookie.max(FIRST_COOKIE);
            record.next_cookie = cookie + 1;
        });
        self.put_entry(parent, name, cookie, inode.ino, inode.kind);
    }

    /// Writes both records of an entry.
    pub(super) fn put_entry(&mut self, parent: &Inode, name: &[u8], cookie: u64, ino: Ino, kind: FileKind) {
        self.put(Key::DirentName(parent.ino, name), &DirentByName { ino, kind, cookie });
        let by_cookie = DirentByCookie { ino, kind, name: name.to_vec() };
        self.put(Key::DirentCookie(parent.ino, cookie), &by_cookie);
    }

    /// Removes both records of an entry.
    pub(super) fn remove_entry(&mut self, parent: &Inode, name: &[u8], cookie: u64) {
        self.delete(Key::DirentName(parent.ino, name));
        self.delete(Key::DirentCookie(parent.ino, cookie));
    }
}
