//! POSIX access control lists: the kernel checks them, the filesystem keeps them and
//! the mode bits in step, and hands a directory's default list to what is made in it.
//!
//! Format: linux/posix_acl_xattr.h, a version and entries of tag, permissions and id.

use std::sync::Arc;

use super::inode::{FLAG_XATTRS, Inode};
use super::meta::Txn;
use super::{Core, FsError, Result, set_id};
use crate::store::{FileKind, Key};
use crate::types::Caller;

const ACCESS: &[u8] = b"system.posix_acl_access";
const DEFAULT: &[u8] = b"system.posix_acl_default";
const VERSION: u32 = 2;
const ENTRY_BYTES: usize = 8;

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// The attribute is an access control list.
pub(super) fn is_acl(name: &[u8]) -> bool {
    name == ACCESS || name == DEFAULT
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    tag: u16,
    permissions: u16,
    id: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Acl(Vec<Entry>);

impl Acl {
    /// The list in an attribute's value; `None` when it is no valid one.
    fn parse(value: &[u8]) -> Option<Acl> {
        let (version, entries) = value.split_first_chunk::<4>()?;
        if u32::from_le_bytes(*version) != VERSION || entries.len() % ENTRY_BYTES != 0 {
            return None;
        }
        let entries: Vec<Entry> = entries
            .chunks_exact(ENTRY_BYTES)
            .map(|raw| Entry {
                tag: u16::from_le_bytes([raw[0], raw[1]]),
                permissions: u16::from_le_bytes([raw[2], raw[3]]),
                id: u32::from_le_bytes([raw[4], raw[5], raw[6], raw[7]]),
            })
            .collect();
        let acl = Acl(entries);
        acl.is_valid().then_some(acl)
    }

    fn is_valid(&self) -> bool {
        let count = |tag| self.0.iter().filter(|entry| entry.tag == tag).count();
        let known =
            |entry: &Entry| matches!(entry.tag, USER_OBJ | USER | GROUP_OBJ | GROUP | MASK | OTHER) && entry.permissions <= 7;
        let named = count(USER) + count(GROUP);
        self.0.iter().all(known)
            && [USER_OBJ, GROUP_OBJ, OTHER].into_iter().all(|tag| count(tag) == 1)
            && count(MASK) <= 1
            && (named == 0 || count(MASK) == 1)
    }

    fn encode(&self) -> Vec<u8> {
        let mut value = VERSION.to_le_bytes().to_vec();
        for entry in &self.0 {
            value.extend_from_slice(&entry.tag.to_le_bytes());
            value.extend_from_slice(&entry.permissions.to_le_bytes());
            value.extend_from_slice(&entry.id.to_le_bytes());
        }
        value
    }

    /// It says no more than mode bits can.
    fn is_minimal(&self) -> bool {
        self.0.len() == 3
    }

    fn permissions(&self, tag: u16) -> Option<u32> {
        self.0.iter().find(|entry| entry.tag == tag).map(|entry| entry.permissions.into())
    }

    /// The mode bits that stand for the list.
    fn mode_bits(&self) -> u32 {
        let group = self.permissions(MASK).or(self.permissions(GROUP_OBJ));
        self.permissions(USER_OBJ).unwrap_or(0) << 6 | group.unwrap_or(0) << 3 | self.permissions(OTHER).unwrap_or(0)
    }

    /// Changes the entries that mode bits stand for.
    fn each_class(&mut self, change: impl Fn(&mut u16, u16), mode: u32) {
        let group_tag = match self.permissions(MASK) {
            Some(_) => MASK,
            None => GROUP_OBJ,
        };
        for entry in &mut self.0 {
            let shift = match entry.tag {
                USER_OBJ => 6,
                OTHER => 0,
                tag if tag == group_tag => 3,
                _ => continue,
            };
            change(&mut entry.permissions, (mode >> shift & 7) as u16);
        }
    }
}

/// What a new inode gets from its directory.
#[derive(Default)]
pub(super) struct Inherited {
    default: Option<Acl>,
    for_directory: bool,
}

impl Inherited {
    /// There is a default list.
    pub(super) fn is_some(&self) -> bool {
        self.default.is_some()
    }

    /// Puts the lists into the new inode's attributes and its mode.
    pub(super) fn store(self, txn: &mut Txn, inode: &Arc<Inode>) {
        let Some(default) = self.default else {
            return;
        };
        let mut access = default.clone();
        let mode = inode.attributes().record.mode;
        access.each_class(|permissions, bits| *permissions &= bits, mode);
        if !access.is_minimal() {
            txn.put_raw(Key::Xattr(inode.ino, ACCESS), &access.encode());
        }
        if self.for_directory {
            txn.put_raw(Key::Xattr(inode.ino, DEFAULT), &default.encode());
        }
        txn.inode(inode, |record| {
            record.mode = record.mode & !0o777 | access.mode_bits();
            record.flags |= FLAG_XATTRS;
        });
    }
}

impl Core {
    fn acl(&self, inode: &Inode, name: &[u8]) -> Result<Option<Acl>> {
        if inode.attributes().record.flags & FLAG_XATTRS == 0 {
            return Ok(None);
        }
        let value = self.get_raw(Key::Xattr(inode.ino, name))?;
        Ok(value.and_then(|value| Acl::parse(&value)))
    }

    /// What something made in a directory inherits.
    pub(super) fn inherited_acl(&self, parent: &Inode, kind: FileKind) -> Result<Inherited> {
        if kind == FileKind::Symlink {
            return Ok(Inherited::default());
        }
        Ok(Inherited { default: self.acl(parent, DEFAULT)?, for_directory: kind == FileKind::Directory })
    }

    /// Sets a list; an access list also changes the mode, and as chmod(2) does ends set-group-id for a caller outside the
    /// group (the kernel says who that is in a form of the request only that fuser does not know). The content lock is
    /// held exclusively.
    pub(super) fn set_acl(&self, txn: &mut Txn, caller: Caller, inode: &Arc<Inode>, name: &[u8], value: &[u8]) -> Result<()> {
        let acl = Acl::parse(value).ok_or(FsError::errno(libc::EINVAL))?;
        if name == DEFAULT {
            if !inode.is_directory() {
                return Err(FsError::errno(libc::EACCES));
            }
            txn.put_raw(Key::Xattr(inode.ino, name), value);
            return Ok(());
        }
        if acl.is_minimal() {
            txn.delete(Key::Xattr(inode.ino, name));
        } else {
            txn.put_raw(Key::Xattr(inode.ino, name), value);
        }
        let record = inode.attributes().record.clone();
        let sets_group_id = record.mode & libc::S_ISGID != 0;
        let ended = match sets_group_id && !set_id::is_in_group(caller, record.gid) {
            true => libc::S_ISGID,
            false => 0,
        };
        txn.inode(inode, |record| {
            record.mode = record.mode & !(0o777 | ended) | acl.mode_bits();
        });
        Ok(())
    }

    /// After a change of mode bits the access list says the same. The content lock is held exclusively.
    pub(super) fn chmod_acl(&self, txn: &mut Txn, inode: &Arc<Inode>, mode: u32) -> Result<()> {
        if let Some(mut acl) = self.acl(inode, ACCESS)? {
            acl.each_class(|permissions, bits| *permissions = bits, mode);
            txn.put_raw(Key::Xattr(inode.ino, ACCESS), &acl.encode());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(tag: u16, permissions: u16) -> Entry {
        Entry { tag, permissions, id: u32::MAX }
    }

    #[test]
    fn a_list_and_its_mode_bits_agree() {
        let mut acl = Acl(vec![entry(USER_OBJ, 7), entry(USER, 6), entry(GROUP_OBJ, 5), entry(MASK, 4), entry(OTHER, 1)]);
        assert_eq!(Acl::parse(&acl.encode()).as_ref(), Some(&acl));
        assert_eq!(acl.mode_bits(), 0o741);
        acl.each_class(|permissions, bits| *permissions = bits, 0o620);
        assert_eq!(acl.mode_bits(), 0o620);
        assert_eq!(acl.permissions(GROUP_OBJ), Some(5));
    }

    #[test]
    fn nonsense_is_refused() {
        let named_without_mask = Acl(vec![entry(USER_OBJ, 7), entry(USER, 6), entry(GROUP_OBJ, 5), entry(OTHER, 1)]);
        assert_eq!(Acl::parse(&named_without_mask.encode()), None);
        assert_eq!(Acl::parse(b"\x02\0\0\0\x01"), None);
        assert_eq!(Acl::parse(b""), None);
    }
}
