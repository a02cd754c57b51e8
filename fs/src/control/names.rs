//! Inode numbers and attributes of virtual files.
//!
//! Bit 63 marks a virtual inode. The control directory has a number of its own
//! in every directory, so that each stays in its place in the kernel's tree;
//! its files are the same everywhere.

use std::time::Duration;

use peerfs_abi::devmem::parse_device_memory_name;
use peerfs_abi::names::{
    CONTROL_DIR, DEVMEM_JSON, FAULTS, INFO_JSON, MAPPINGS_JSON, METRICS, SESSION, TOPOLOGY_JSON, parse_grant_name,
};
use peerfs_p2p::{GrantId, ObjectId};

use crate::types::{Attr, DirEntry, Ino, Timestamp};

const VIRTUAL: u64 = 1 << 63;
const FILE: u64 = VIRTUAL | 1 << 62;
const GRANT: u64 = FILE | 1 << 61;
const DEVICE_MEMORY: u64 = FILE | 1 << 60;

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
    /// State of the server as metrics.
    Metrics,
    /// Ledger of mappings.
    Mappings,
    /// PCI topology.
    Topology,
    /// Faults of the storage device.
    Faults,
    /// Who holds how much device memory.
    DeviceMemoryUse,
    /// An allocation of device memory.
    DeviceMemory(u64),
    /// The memory of a grant.
    Grant(GrantId),
}

const FIXED: [(Virtual, &str, u64); 7] = [
    (Virtual::Session, SESSION, FILE | 1),
    (Virtual::Info, INFO_JSON, FILE | 2),
    (Virtual::Mappings, MAPPINGS_JSON, FILE | 3),
    (Virtual::Topology, TOPOLOGY_JSON, FILE | 4),
    (Virtual::Faults, FAULTS, FILE | 5),
    (Virtual::DeviceMemoryUse, DEVMEM_JSON, FILE | 6),
    (Virtual::Metrics, METRICS, FILE | 7),
];

impl Virtual {
    /// What an inode number stands for.
    pub fn from_ino(ino: Ino) -> Option<Virtual> {
        match ino {
            ino if ino & GRANT == GRANT => Some(Virtual::Grant(GrantId(ino & !GRANT))),
            ino if ino & DEVICE_MEMORY == DEVICE_MEMORY => Some(Virtual::DeviceMemory(ino & !DEVICE_MEMORY)),
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
            Virtual::DeviceMemory(id) => DEVICE_MEMORY | id,
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
                let grant = parse_grant_name(name).map(GrantId).filter(|id| Virtual::Grant(*id).ino() & !GRANT == id.0);
                let memory = parse_device_memory_name(name).filter(|id| id >> 60 == 0);
                grant.map(Virtual::Grant).or(memory.map(Virtual::DeviceMemory))
            }
        }
    }
}

/// What a file is to the mapping engine.
pub fn object(ino: Ino) -> ObjectId {
    match Virtual::from_ino(ino) {
        Some(Virtual::DeviceMemory(id)) => ObjectId::device_memory(id),
        _ => ObjectId(ino),
    }
}

/// A file of device memory: reading and writing it may wait, and never through the page cache.
pub fn is_device_memory(ino: Ino) -> bool {
    matches!(Virtual::from_ino(ino), Some(Virtual::DeviceMemory(_)))
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
        let memory = Virtual::DeviceMemory(5);
        let fixed = [Virtual::Session, Virtual::Info, Virtual::Mappings, Virtual::DeviceMemoryUse];
        for file in fixed.into_iter().chain([grant, memory, Virtual::Directory { parent: 77 }]) {
            assert!(is_virtual(file.ino()));
            assert_eq!(Virtual::from_ino(file.ino()), Some(file));
        }
        let dir = Virtual::look_up(77, b".peerfs").expect("in every directory").ino();
        assert_eq!(Virtual::look_up(dir, b"session"), Some(Virtual::Session));
        assert_eq!(Virtual::look_up(dir, grant_name(0x1234_5678_9abc).as_bytes()), Some(grant));
        assert_eq!(Virtual::look_up(dir, grant_name(u64::MAX).as_bytes()), None, "more bits than an inode number can carry");
        assert_eq!(Virtual::look_up(dir, b"devmem-5"), Some(memory));
        assert_eq!(Virtual::look_up(dir, b"devmem-1152921504606846976"), None, "more bits than an inode number can carry");
        assert_eq!((object(memory.ino()), object(77)), (ObjectId::device_memory(5), ObjectId(77)));
        assert_eq!(Virtual::look_up(77, b"session"), None);
        assert_eq!(Virtual::from_ino(77), None);
    }
}
