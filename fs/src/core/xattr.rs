//! Extended attributes.

use peerfs_abi::Trigger;
use peerfs_p2p::Range;

use super::inode::{FLAG_XATTRS, stamp_change};
use super::meta::Txn;
use super::time::now;
use super::{Core, FsError, Result, acl, policy};
use crate::store::{Key, NAME_BYTES, XATTR_BYTES};
use crate::types::{Caller, Ino, XattrMode};

/// Most bytes of names that listxattr may return (the kernel's XATTR_LIST_MAX).
const LIST_BYTES: usize = 65536;
const NAMES_AT_ONCE: usize = 4096;

/// Attributes for the administrator alone, who is taken to be root. The kernel guards their values, not their names.
const TRUSTED: &[u8] = b"trusted.";
const NAMESPACES: [&[u8]; 3] = [b"user.", TRUSTED, b"security."];

fn check_name(name: &[u8]) -> Result<()> {
    if name.is_empty() || name.len() > NAME_BYTES {
        return Err(FsError::errno(libc::ERANGE));
    }
    if NAMESPACES.contains(&name) {
        return Err(FsError::errno(libc::EINVAL));
    }
    let known = NAMESPACES.iter().any(|namespace| name.starts_with(namespace)) || acl::is_acl(name);
    if known { Ok(()) } else { Err(FsError::errno(libc::EOPNOTSUPP)) }
}

impl Core {
    pub(super) fn do_setxattr(&self, caller: Caller, ino: Ino, name: &[u8], value: &[u8], mode: XattrMode) -> Result<()> {
        check_name(name)?;
        if value.len() > XATTR_BYTES {
            return Err(FsError::errno(libc::E2BIG));
        }
        let is_policy = name == policy::XATTR;
        if is_policy {
            policy::parse(value)?;
        }
        self.admit_change()?;
        self.admit_growth()?;
        let inode = self.inode(ino)?;
        let coherence = self.coherence();
        let _closed = is_policy.then(|| coherence.close_range(ino, Range::ALL, Trigger::PolicyChange));
        let _content = inode.exclude();
        let present = self.get_raw(Key::Xattr(ino, name))?.is_some();
        match (mode, present) {
            (XattrMode::Create, true) => return Err(FsError::errno(libc::EEXIST)),
            (XattrMode::Replace, false) => return Err(FsError::errno(libc::ENODATA)),
            (_, false) => self.check_list_room(ino, name)?,
            _ => {}
        }
        let mut txn = Txn::new();
        if acl::is_acl(name) {
            self.set_acl(&mut txn, caller, &inode, name, value)?;
        } else {
            txn.put_raw(Key::Xattr(ino, name), value);
        }
        txn.inode(&inode, |record| {
            record.flags |= FLAG_XATTRS;
            stamp_change(record, now());
        });
        self.apply(txn)?;
        if is_policy {
            policy::forget(&inode);
        }
        Ok(())
    }

    pub(super) fn do_getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        check_name(name)?;
        let inode = self.inode(ino)?;
        // The kernel asks for security.capability before every write.
        if inode.attributes().record.flags & FLAG_XATTRS == 0 {
            return Err(FsError::errno(libc::ENODATA));
        }
        match self.get_raw(Key::Xattr(ino, name))? {
            Some(value) => Ok(value.to_vec()),
            None => Err(FsError::errno(libc::ENODATA)),
        }
    }

    pub(super) fn do_listxattr(&self, caller: Caller, ino: Ino) -> Result<Vec<u8>> {
        let inode = self.inode(ino)?;
        let mut list = Vec::new();
        if inode.attributes().record.flags & FLAG_XATTRS == 0 {
            return Ok(list);
        }
        let is_shown = |name: &Vec<u8>| caller.uid == 0 || !name.starts_with(TRUSTED);
        for name in self.xattr_names(ino)?.into_iter().filter(is_shown) {
            list.extend_from_slice(&name);
            list.push(0);
        }
        Ok(list)
    }

    pub(super) fn do_removexattr(&self, ino: Ino, name: &[u8]) -> Result<()> {
        check_name(name)?;
        self.admit_change()?;
        let inode = self.inode(ino)?;
        let coherence = self.coherence();
        let is_policy = name == policy::XATTR;
        let _closed = is_policy.then(|| coherence.close_range(ino, Range::ALL, Trigger::PolicyChange));
        let _content = inode.exclude();
        if self.get_raw(Key::Xattr(ino, name))?.is_none() {
            // Every file has an access list, if only that of its mode.
            return if acl::is_acl(name) { Ok(()) } else { Err(FsError::errno(libc::ENODATA)) };
        }
        let mut txn = Txn::new();
        txn.delete(Key::Xattr(ino, name));
        txn.inode(&inode, |record| stamp_change(record, now()));
        self.apply(txn)?;
        if is_policy {
            policy::forget(&inode);
        }
        Ok(())
    }

    /// Names of all attributes of an inode.
    pub(super) fn xattr_names(&self, ino: Ino) -> Result<Vec<Vec<u8>>> {
        let mut names = Vec::new();
        let mut range = Key::xattrs_of(ino);
        loop {
            let records = self.scan(range.clone(), NAMES_AT_ONCE)?;
            let Some((last, _)) = records.last() else {
                return Ok(names);
            };
            range.start = last.clone();
            range.start.push(0);
            for (key, _) in &records {
                if let Key::Xattr(_, name) = Key::decode(key).map_err(super::dir::damaged)? {
                    names.push(name.to_vec());
                }
            }
        }
    }

    fn check_list_room(&self, ino: Ino, name: &[u8]) -> Result<()> {
        let used: usize = self.xattr_names(ino)?.iter().map(|name| name.len() + 1).sum();
        if used + name.len() + 1 > LIST_BYTES {
            return Err(FsError::errno(libc::ENOSPC));
        }
        Ok(())
    }
}
