//! Keys of the metadata database: one ordered byte-string space, a leading
//! byte for the type of the record, numbers big endian so that byte order is
//! numeric order and the records of one file lie together.

use std::ops::Range;

/// Longest name of a directory entry in bytes.
pub const NAME_BYTES: usize = 255;

/// A record that cannot be understood: the image is damaged or hostile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The key is of no known type or has the wrong length.
    #[error("record key {0:02x?} is malformed")]
    BadKey(Vec<u8>),
    /// The value has the wrong length or an impossible content.
    #[error("a record of type {what} is malformed: {reason}")]
    BadValue {
        /// Type of the record.
        what: &'static str,
        /// What is wrong.
        reason: &'static str,
    },
}

const INODE: u8 = 1;
const DIRENT_NAME: u8 = 2;
const DIRENT_COOKIE: u8 = 3;
const EXTENT: u8 = 4;
const XATTR: u8 = 5;
const SYMLINK: u8 = 6;
const ORPHAN: u8 = 7;
const FREE: u8 = 8;
const COUNTER: u8 = 9;
const SHARED: u8 = 10;
const QUARANTINE: u8 = 11;

/// A key, typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Key<'a> {
    /// Inode number -> [`super::Inode`].
    Inode(u64),
    /// Directory and name -> [`super::DirentByName`].
    DirentName(u64, &'a [u8]),
    /// Directory and cookie -> [`super::DirentByCookie`].
    DirentCookie(u64, u64),
    /// Inode and first file block -> [`super::Extent`].
    Extent(u64, u64),
    /// Inode and attribute name -> raw value.
    Xattr(u64, &'a [u8]),
    /// Inode -> raw target of the symbolic link.
    Symlink(u64),
    /// Inode without a name that is still open -> empty.
    Orphan(u64),
    /// First free block -> [`super::BlockCount`].
    Free(u64),
    /// Counter number (see [`super::counter`]) -> [`super::Counter`].
    Counter(u32),
    /// First block of a shared run -> [`super::SharedRun`].
    Shared(u64),
    /// First block of a run that a pin still reaches -> [`super::BlockCount`]. Freed at the next mount.
    Quarantine(u64),
}

impl<'a> Key<'a> {
    /// The bytes in the database.
    pub fn encode(&self) -> Vec<u8> {
        match *self {
            Key::Inode(ino) => pack(INODE, &[ino], &[]),
            Key::DirentName(parent, name) => pack(DIRENT_NAME, &[parent], name),
            Key::DirentCookie(parent, cookie) => pack(DIRENT_COOKIE, &[parent, cookie], &[]),
            Key::Extent(ino, file_block) => pack(EXTENT, &[ino, file_block], &[]),
            Key::Xattr(ino, name) => pack(XATTR, &[ino], name),
            Key::Symlink(ino) => pack(SYMLINK, &[ino], &[]),
            Key::Orphan(ino) => pack(ORPHAN, &[ino], &[]),
            Key::Free(start) => pack(FREE, &[start], &[]),
            Key::Counter(id) => pack(COUNTER, &[], &id.to_be_bytes()),
            Key::Shared(start) => pack(SHARED, &[start], &[]),
            Key::Quarantine(start) => pack(QUARANTINE, &[start], &[]),
        }
    }

    /// Reads a key back.
    pub fn decode(bytes: &'a [u8]) -> Result<Key<'a>, RecordError> {
        Self::try_decode(bytes).ok_or_else(|| RecordError::BadKey(bytes.to_vec()))
    }

    fn try_decode(bytes: &'a [u8]) -> Option<Key<'a>> {
        let (&kind, rest) = bytes.split_first()?;
        if kind == COUNTER {
            return Some(Key::Counter(u32::from_be_bytes(rest.try_into().ok()?)));
        }
        let (&first, rest) = rest.split_first_chunk::<8>()?;
        let first = u64::from_be_bytes(first);
        if matches!(kind, DIRENT_NAME | XATTR) {
            return match (kind, rest.len()) {
                (DIRENT_NAME, 1..=NAME_BYTES) => Some(Key::DirentName(first, rest)),
                (XATTR, 1..=NAME_BYTES) => Some(Key::Xattr(first, rest)),
                _ => None,
            };
        }
        if matches!(kind, DIRENT_COOKIE | EXTENT) {
            let second = u64::from_be_bytes(rest.try_into().ok()?);
            return Some(match kind {
                DIRENT_COOKIE => Key::DirentCookie(first, second),
                _ => Key::Extent(first, second),
            });
        }
        if !rest.is_empty() {
            return None;
        }
        match kind {
            INODE => Some(Key::Inode(first)),
            SYMLINK => Some(Key::Symlink(first)),
            ORPHAN => Some(Key::Orphan(first)),
            FREE => Some(Key::Free(first)),
            SHARED => Some(Key::Shared(first)),
            QUARANTINE => Some(Key::Quarantine(first)),
            _ => None,
        }
    }

    /// Keys of all names in a directory.
    pub fn names_of(parent: u64) -> Range<Vec<u8>> {
        records_of(DIRENT_NAME, parent)
    }

    /// Keys of a directory's entries by their cookies.
    pub fn cookies_of(parent: u64, cookies: Range<u64>) -> Range<Vec<u8>> {
        Key::DirentCookie(parent, cookies.start).encode()..Key::DirentCookie(parent, cookies.end).encode()
    }

    /// Keys of all extents of a file.
    pub fn extents_of(ino: u64) -> Range<Vec<u8>> {
        records_of(EXTENT, ino)
    }

    /// Keys of all attributes of an inode.
    pub fn xattrs_of(ino: u64) -> Range<Vec<u8>> {
        records_of(XATTR, ino)
    }

    /// Keys of all inodes.
    pub fn inodes() -> Range<Vec<u8>> {
        all(INODE)
    }

    /// Keys of all orphans.
    pub fn orphans() -> Range<Vec<u8>> {
        all(ORPHAN)
    }

    /// Keys of all free extents.
    pub fn free_extents() -> Range<Vec<u8>> {
        all(FREE)
    }

    /// Keys of all shared runs.
    pub fn shared_runs() -> Range<Vec<u8>> {
        all(SHARED)
    }

    /// Keys of all quarantined runs.
    pub fn quarantined() -> Range<Vec<u8>> {
        all(QUARANTINE)
    }
}

fn pack(kind: u8, numbers: &[u64], tail: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + 8 * numbers.len() + tail.len());
    key.push(kind);
    for number in numbers {
        key.extend_from_slice(&number.to_be_bytes());
    }
    key.extend_from_slice(tail);
    key
}

fn all(kind: u8) -> Range<Vec<u8>> {
    vec![kind]..vec![kind + 1]
}

fn records_of(kind: u8, owner: u64) -> Range<Vec<u8>> {
    let end = match owner.checked_add(1) {
        Some(next) => pack(kind, &[next], &[]),
        None => vec![kind + 1],
    };
    pack(kind, &[owner], &[])..end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_survive_the_round_trip_and_sort() {
        let keys = [
            Key::Inode(0),
            Key::Inode(255),
            Key::Inode(256),
            Key::Inode(u64::MAX),
            Key::DirentName(1, b"a"),
            Key::DirentName(1, b"b"),
            Key::DirentName(2, b"\0"),
            Key::DirentCookie(1, 2),
            Key::Extent(7, 0),
            Key::Extent(7, 1 << 40),
            Key::Extent(8, 0),
            Key::Xattr(1, b"user.x"),
            Key::Symlink(4),
            Key::Orphan(4),
            Key::Free(99),
            Key::Counter(1),
            Key::Shared(5),
            Key::Quarantine(6),
        ];
        let encoded: Vec<_> = keys.iter().map(Key::encode).collect();
        assert!(encoded.is_sorted());
        for (key, bytes) in keys.iter().zip(&encoded) {
            assert_eq!(Key::decode(bytes).as_ref(), Ok(key));
        }
        assert!(Key::extents_of(7).contains(&encoded[9]));
        assert!(!Key::extents_of(7).contains(&encoded[10]));
        assert!(Key::inodes().contains(&encoded[3]));
        assert!(!Key::inodes().contains(&encoded[4]));
    }

    #[test]
    fn malformed_keys_are_errors() {
        for bad in [&b""[..], b"\x00", b"\x01\0\0", b"\x02\0\0\0\0\0\0\0\0", b"\xff12345678", b"\x09\0"] {
            assert_eq!(Key::decode(bad), Err(RecordError::BadKey(bad.to_vec())));
        }
        let long = pack(DIRENT_NAME, &[1], &[b'x'; NAME_BYTES + 1]);
        assert!(Key::decode(&long).is_err());
    }
}
