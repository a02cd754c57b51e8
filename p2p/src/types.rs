//! The nouns of the mapping model.

use std::fmt;

use peerfs_abi::{ImporterFlags, MapFlags, Reason, ReasonSet, TriggerSet};
use peerfs_blockdev::PathKind;
use peerfs_blockdev::pci::PciAddress;

/// Something that can be mapped: for the filesystem an inode number. Its high bits tell who exports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectId(pub u64);

/// Who exports an object: each has a device, an aperture and a reverse map of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExportId {
    /// Files of the volume.
    Files,
    /// Memory of a device that is handed out at run time.
    DeviceMemory,
}

impl ExportId {
    /// How many there are.
    pub const COUNT: usize = 2;

    pub(crate) fn index(self) -> usize {
        self as usize
    }
}

impl ObjectId {
    /// Inode numbers of files stay below.
    const DEVICE_MEMORY: u64 = 1 << 62;

    /// The object of an allocation of device memory.
    pub fn device_memory(allocation: u64) -> ObjectId {
        ObjectId(Self::DEVICE_MEMORY | allocation)
    }

    /// The allocation behind an object, if it is device memory.
    pub fn allocation(self) -> Option<u64> {
        (self.export() == ExportId::DeviceMemory).then_some(self.0 & !Self::DEVICE_MEMORY)
    }

    /// Who exports it.
    pub fn export(self) -> ExportId {
        match self.0 & Self::DEVICE_MEMORY {
            0 => ExportId::Files,
            _ => ExportId::DeviceMemory,
        }
    }
}

/// A context: (importer, one address space). Never reused on one volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ContextId(pub u64);

/// A mapping: slot and generation, so that a stale handle is a failed look-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MappingId(pub u64);

/// A grant: what a client opens and maps. Unguessable and never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GrantId(pub u64);

impl GrantId {
    /// Largest grant id: a transport needs a few bits to make an inode number of it.
    pub const MAX: u64 = (1 << 61) - 1;
}

impl fmt::Display for GrantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A byte range of an object, end exclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Range {
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

impl Range {
    /// Every byte of an object.
    pub const ALL: Range = Range { start: 0, end: u64::MAX };

    /// A range from offset and length, cut off at the largest offset.
    pub fn new(start: u64, length: u64) -> Range {
        Range { start, end: start.saturating_add(length) }
    }

    /// Length in bytes.
    pub fn length(self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// Holds no byte.
    pub fn is_empty(self) -> bool {
        self.end <= self.start
    }

    /// The common part; may be empty.
    pub fn intersect(self, other: Range) -> Range {
        let start = self.start.max(other.start);
        Range { start, end: self.end.min(other.end).max(start) }
    }

    /// Shares at least one byte.
    pub fn overlaps(self, other: Range) -> bool {
        !self.intersect(other).is_empty()
    }
}

/// What an importer is and can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Importer {
    /// Name, for example `cpu`.
    pub name: String,
    /// Abilities.
    pub flags: ImporterFlags,
    /// Bits of bus address it can put out.
    pub dma_bits: u32,
    /// Bits of virtual address it can use.
    pub va_bits: u32,
    /// Its page size in bytes.
    pub page_bytes: u32,
    /// Where it is on the PCI bus; `None`: it is software and needs no peer path.
    pub pci_address: Option<PciAddress>,
    /// It runs in a client's process, so it needs an object that hands memory to a process and takes it back.
    pub in_client: bool,
}

/// What the exporter knows of one stretch of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExtentState {
    /// Nothing allocated.
    Hole,
    /// Allocated, never written.
    Unwritten,
    /// Blocks with data.
    Mapped {
        /// Byte offset on the device of the stretch's first byte.
        device_offset: u64,
        /// Shared with another object (reflink).
        shared: bool,
    },
    /// With data, but in main memory at present: there is no room for it on the device.
    Migrated,
}

/// A stretch of an object. Block aligned at both ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Offset in the object, bytes.
    pub file_offset: u64,
    /// Length, bytes.
    pub length: u64,
    /// What is there.
    pub state: ExtentState,
}

/// Policy of direct mapping, for a mount or one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DirectPolicy {
    /// Write back and drop cached pages, then map directly.
    #[default]
    Prefer,
    /// Fall back where pages are cached.
    RespectCache,
    /// Never map directly.
    Never,
}

/// Everything [`crate::decide`] needs to know of an object. A snapshot.
#[derive(Debug, Clone)]
pub struct Survey {
    /// It has blocks.
    pub regular: bool,
    /// Size in bytes.
    pub size: u64,
    /// Nothing can write to the object, whatever handle it has.
    pub read_only: bool,
    /// Effective policy.
    pub policy: DirectPolicy,
    /// Stretches that cover the surveyed range (up to the block-rounded size), sorted, without gaps or overlap.
    pub extents: Vec<Extent>,
    /// Ranges with pages in the CPU's page cache, as far as known, sorted.
    pub cached: Vec<Range>,
    /// Ranges closed to new mappings at present, sorted.
    pub closed: Vec<Range>,
    /// What could happen to the object later that ends a mapping of it which is no pin.
    pub triggers: TriggerSet,
    /// What pins are decided by.
    pub pins: PinSurvey,
}

/// What a pin needs beyond what every mapping needs. The exporter counts handles, the engine knows the quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PinSurvey {
    /// Bytes that may still be pinned, by this user and on this mount.
    pub left_bytes: u64,
    /// Open handles of the object that go through the CPU's page cache.
    pub cached_handles: u32,
    /// Those of them that are open for writing.
    pub cached_writers: u32,
}

/// One stretch of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// Where in the object.
    pub range: Range,
    /// Direct or not.
    pub placement: Placement,
    /// Every reason that refuses it; the first is the placement's. Empty when it is direct.
    pub refusals: ReasonSet,
    /// What could end a mapping of it later. Empty when it falls back.
    pub triggers: TriggerSet,
}

/// How the importer reaches a stretch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// Through the aperture.
    Direct {
        /// Attestation label.
        path: PathKind,
        /// Byte offset on the storage device.
        device_offset: u64,
    },
    /// Through main memory.
    Fallback(Reason),
}

/// A request to map or to query.
#[derive(Debug, Clone)]
pub struct MapRequest {
    /// The object.
    pub object: ObjectId,
    /// The range, bytes.
    pub range: Range,
    /// PIN, WRITE, ATOMIC, QUERY.
    pub flags: MapFlags,
    /// The caller's handle allows writing.
    pub handle_writable: bool,
    /// User who asks; pins count against a quota of his.
    pub uid: u32,
    /// Descriptor number and thread of the caller, through which its view of the page cache can be checked.
    pub cache_probe: Option<CacheProbe>,
}

/// Names a descriptor in the caller's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheProbe {
    /// Thread id of the caller.
    pub tid: u32,
    /// Descriptor number in that process.
    pub fd: i32,
}
