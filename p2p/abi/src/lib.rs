//! What crosses the process boundary between a peerfs server and its clients:
//! ioctl structures, the messages of the grant socket, reasons, and the names
//! of the virtual files. The C header `peerfs.h` is generated from this crate.
//!
//! All integers are in host byte order: both sides are on one machine. Every
//! structure has a fixed size and no implicit padding, so 32-bit programs use
//! the same layout.

pub mod devmem;
pub mod explain;
pub mod ioctl;
pub mod names;
pub mod reason;
pub mod sets;
pub mod socket;

pub use explain::Rule;
pub use reason::{Path, REASON_SLOTS, REVOKED, Reason, Stage, Trigger, slot_name};
pub use sets::{ReasonSet, TriggerSet};

/// Version of everything in this crate. A server refuses another one.
pub const ABI_VERSION: u32 = 1;

bitflags::bitflags! {
    /// Flags of a map request: the three of the `device_map` proposal, and QUERY.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct MapFlags: u32 {
        /// The mapping's lifetime is that of a buffer object; it is not revoked.
        const PIN = 1;
        /// The importer wants to write.
        const WRITE = 2;
        /// The importer wants atomic operations.
        const ATOMIC = 4;
        /// Decide only; nothing changes.
        const QUERY = 8;
    }

    /// What an importer is able to do.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct ImporterFlags: u32 {
        /// It honours invalidation (otherwise it may hold pins only).
        const DYNAMIC = 1;
        /// It can write.
        const WRITE = 2;
        /// It can do atomic operations.
        const ATOMIC = 4;
    }
}

impl MapFlags {
    /// The importer may change the range: it asked to write, or for atomic operations, which write.
    pub fn writes(self) -> bool {
        self.intersects(MapFlags::WRITE | MapFlags::ATOMIC)
    }
}
