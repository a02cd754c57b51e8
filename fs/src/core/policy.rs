//! A file's own policy of direct mapping, kept in an extended attribute.

use std::sync::atomic::Ordering;

use peerfs_p2p::DirectPolicy;

use super::inode::{FLAG_XATTRS, Inode};
use super::{Core, FsError, Result};
use crate::store::Key;

/// Name of the attribute.
pub(super) const XATTR: &[u8] = b"user.peerfs.direct";

/// Values of [`Inode::policy`].
const UNKNOWN: u8 = 0;
const NONE: u8 = 1;
const FIRST: u8 = 2;

const VALUES: [(&[u8], DirectPolicy); 3] =
    [(b"prefer", DirectPolicy::Prefer), (b"respect-cache", DirectPolicy::RespectCache), (b"never", DirectPolicy::Never)];

/// The policy that a value of the attribute names.
pub(super) fn parse(value: &[u8]) -> Result<DirectPolicy> {
    VALUES.iter().find(|(text, _)| *text == value).map(|(_, policy)| *policy).ok_or(FsError::errno(libc::EINVAL))
}

/// The attribute changed. The inode's content lock is held exclusively.
pub(super) fn forget(inode: &Inode) {
    inode.policy.store(UNKNOWN, Ordering::Release);
}

impl Core {
    pub(super) fn policy_of(&self, inode: &Inode) -> Result<Option<DirectPolicy>> {
        let mut encoded = inode.policy.load(Ordering::Acquire);
        if encoded == UNKNOWN {
            // Shared, so that a change of the attribute cannot be overtaken by its old value.
            let _content = inode.share();
            encoded = self.read_policy(inode)?;
            inode.policy.store(encoded, Ordering::Release);
        }
        Ok(VALUES.get(usize::from(encoded.wrapping_sub(FIRST))).map(|(_, policy)| *policy))
    }

    fn read_policy(&self, inode: &Inode) -> Result<u8> {
        if inode.attributes().record.flags & FLAG_XATTRS == 0 {
            return Ok(NONE);
        }
        let value = self.get_raw(Key::Xattr(inode.ino, XATTR))?;
        let index = value.and_then(|value| VALUES.iter().position(|(text, _)| *text == &value[..]));
        Ok(index.map_or(NONE, |index| FIRST + index as u8))
    }
}
