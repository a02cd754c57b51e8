//! Inode numbers and attributes of virtual files.
//!
//! Bit 63 marks a virtual inode. The control directory has a number of its own
//! in every directory, so that each stays in its place in the kernel's tree;
//! its files are the same everywhere.

use std::time::Duration;

use peerfs_abi::names::{CONTROL_DIR, FAULTS, INFO_JSON, MAPPINGS_JSON, SESSION, TOPOLOGY_JSON, parse_grant_name};
use peerfs_p2p::GrantId;

use crate::types::{Attr, DirEntry, Ino, Timestamp};

const VIRTUAL: u64 = 1 << 63;
const FILE: u64 = VIRTUAL | 1 << 62;
const GRANT: u64 = FILE | 1 << 61;

/// Virtual files change without the kernel's knowledge.
pub const TTL: Duration = Duration::ZERO;

/// Handle of every open control directory.
pub const DIR_HANDLE: u64 = 0;

/// What a virtual inode number stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Virtual {
    /// The control directory inside the directory `parent`.
    Directory {
        /// The real directory.
        parent: Ino,
    },
    /// Opened once per client session.
    Session,
    /// State of the server.
    Info,
    /// Ledger of mappings.
    Mappings,
    /// PCI topology.
    Topology,
    /// Faults of the storage device.
    Faults,
    /// The memory of a grant.
    Grant(GrantId),
}

const FIXED: [(Virtual, &str, u64); 5] = [
    (Virtual::Session, SESSION, FILE | 1),
    (Virtual::Info, INFO_JSON, FILE | 2),
    (Virtual::Mappings, MAPPINGS_JSON, FILE | 3),
    (Virtual::Topology, TOPOLOGY_JSON, FILE | 4),
    (Virtual::Faults, FAULTS, FILE | 5),
];

impl Virtual {
    /// What an inode number stands for.
    pub fn from_ino(ino: Ino) -> Option<Virtual> {
        match ino {
            ino if ino & GRANT == GRANT => Some(Virtual::Grant(GrantId(ino & !GRANT))),
            ino if ino & FILE == FILE => FIXED.iter().find(|fixed| fixed.2 == ino).map(|fixed| fixed.0),
            ino if is_virtual(ino) => Some(Virtual::Directory { parent: ino & !VIRTUAL }),
            _ => None,
        }
    }

    /// Its inode number.
    pub fn ino(self) -> Ino {
        match self {
            Virtual::Directory { parent } => VIRTUAL | parent,
            Virtual::Grant(id) => GRANT | id.0,
            other => FIXED.iter().find(|fixed| fixed.0 == other).map_or(FILE, |fixed| fixed.2),
        }
    }

    /// A name in a directory, which may be a real or a control directory.
    pub fn look_up(parent: Ino, name: &[u8]) -> Option<Virtual> {
        if !is_virtual(parent) {
            return is_reserved(name).then_some(Virtual::Directory { parent });
        }
        let name = std::str::from_utf8(name).ok()?;
        match FIXED.iter().find(|fixed| fixed.1 == name) {
            Some(fixed) => Some(fixed.0),
            None => {
                parse_grant_name(name).map(GrantId).filter(|id| Virtual::Grant(*id).ino() & !GRANT == id.0).map(Virtual::Grant)
            }
        }
    }
}

/// Belongs to the control directory, not to the volume.
pub fn is_virtual(ino: Ino) -> bool {
    ino & VIRTUAL != 0
}

/// This name exists in every directory and cannot be used for anything else.
pub fn is_reserved(name: &[u8]) -> bool {
    name == CONTROL_DIR.as_bytes()
}

/// What listing a control directory shows. Grants are reached by name only.
pub fn entries(ino: Ino) -> Vec<DirEntry<'static>> {
    let parent = ino & !VIRTUAL;
    let mut list = vec![
        DirEntry { ino, kind: libc::S_IFDIR, cookie: 1, name: b".", attr: None },
        DirEntry { ino: parent, kind: libc::S_IFDIR, cookie: 2, name: b"..", attr: None },
    ];
    for (at, (_, name, ino)) in FIXED.iter().enumerate() {
        list.push(DirEntry { ino: *ino, kind: libc::S_IFREG, cookie: at as u64 + 3, name: name.as_bytes(), attr: None });
    }
    list
}

/// Attributes of a virtual file.
pub fn attributes(ino: Ino, mode: u32, uid: u32, size: u64, now: Timestamp) -> Attr {
    Attr {
        ino,
        generation: 1,
        mode,
        uid,
        gid: 0,
        nlink: 1,
        size,
        blocks: 0,
        atime: now,
        mtime: now,
        ctime: now,
        crtime: now,
        rdev: 0,
    }
}

#[cfg(test)]
mod tests {
    use peerfs_abi::names::grant_name;

    use super::*;

    #[test]
    fn numbers_and_names_lead_to_the_same_file() {
        let grant = Virtual::Grant(GrantId(0x1234_5678_9abc));
        for file in [Virtual::Session, Virtual::Info, Virtual::Mappings, grant, Virtual::Directory { parent: 77 }] {
            assert!(is_virtual(file.ino()));
            assert_eq!(Virtual::from_ino(file.ino()), Some(file));
        }
        let dir = Virtual::look_up(77, b".peerfs").expect("in every directory").ino();
        assert_eq!(Virtual::look_up(dir, b"session"), Some(Virtual::Session));
        assert_eq!(Virtual::look_up(dir, grant_name(0x1234_5678_9abc).as_bytes()), Some(grant));
        assert_eq!(Virtual::look_up(dir, grant_name(u64::MAX).as_bytes()), None, "more bits than an inode number can carry");
        assert_eq!(Virtual::look_up(77, b"session"), None);
        assert_eq!(Virtual::from_ino(77), None);
    }
}
