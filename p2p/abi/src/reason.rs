//! Why a range is not mapped directly, why a mapping ended, and which way bytes went.
//!
//! One enumeration serves the ioctl's answer, the metric's label, the text of
//! `peerfs query` and the tests.

use std::fmt;

/// Which stage of the decision refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// The filesystem.
    Filesystem,
    /// The block device and its aperture.
    BlockDevice,
    /// The path between the devices.
    PeerPath,
}

/// Why a range falls back. The numbers are part of the ABI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum Reason {
    /// Only regular files have blocks to map.
    NotRegularFile = 1,
    /// No blocks are allocated here.
    Hole = 2,
    /// The blocks are preallocated but were never written.
    Unwritten = 3,
    /// The range lies beyond the end of the file.
    BeyondEof = 4,
    /// Direct mappings start and end on 4096-byte boundaries (or at the end of the file).
    Misaligned = 5,
    /// Dirty pages of the range are in the page cache and could not be written back.
    PageCacheDirty = 6,
    /// Pages of the range are in the page cache and the policy is respect-cache.
    PageCached = 7,
    /// A cached handle of the file is open for writing and may write behind the importer's back.
    CpuWriter = 8,
    /// The blocks are shared with another file: they must not be written in place, nor pinned.
    SharedExtent = 9,
    /// Direct mapping is switched off for this file or mount.
    Policy = 10,
    /// The file handle or the mount is read-only.
    ReadOnly = 11,
    /// The range is being revoked, or pinned, or was used by the CPU each time the map was tried.
    Busy = 12,
    /// The storage device has no aperture.
    NoAperture = 32,
    /// No room is left in the aperture.
    ApertureFull = 33,
    /// The kernel has no object that could hand this memory to a process and take it back.
    NoGrantObject = 34,
    /// The aperture or the importer does not allow peer writes.
    WriteForbidden = 35,
    /// Not every part of the path can do atomic operations.
    AtomicUnsupported = 36,
    /// The quota for pinned mappings is used up.
    PinQuota = 37,
    /// The storage device is being reset.
    DeviceResetting = 38,
    /// The storage device cannot read or write these blocks.
    MediaError = 39,
    /// No peer-to-peer path leads from the importer to the storage device.
    NoPeerPath = 64,
    /// The importer cannot address this memory.
    DmaMaskExceeded = 65,
    /// The IOMMU refused the mapping.
    IommuRejected = 66,
    /// The importer cannot honour revocation, so it may hold only pinned mappings.
    NotifierRequired = 67,
    /// The importer holds as many mappings as it may.
    ImporterQuota = 68,
    /// The context belongs to another address space, or has ended.
    StaleContext = 69,
}

/// Places for counters by reason ([`Reason::slot`]). Place 0 is for what was direct when it was mapped, and was revoked
/// since.
pub const REASON_SLOTS: usize = 32;

/// The label of place 0 in metrics and JSON.
pub const REVOKED: &str = "revoked";

const _: () = assert!(Reason::ALL.len() < REASON_SLOTS);

/// The label of a counter by reason, as in metrics and JSON.
pub fn slot_name(slot: usize) -> &'static str {
    match Reason::from_slot(slot) {
        Some(reason) => reason.name(),
        None if slot == 0 => REVOKED,
        None => "unknown",
    }
}

impl Reason {
    /// Every reason, in pipeline order.
    pub const ALL: &'static [Reason] = &[
        Reason::NotRegularFile,
        Reason::Hole,
        Reason::Unwritten,
        Reason::BeyondEof,
        Reason::Misaligned,
        Reason::PageCacheDirty,
        Reason::PageCached,
        Reason::CpuWriter,
        Reason::SharedExtent,
        Reason::Policy,
        Reason::ReadOnly,
        Reason::Busy,
        Reason::NoAperture,
        Reason::ApertureFull,
        Reason::NoGrantObject,
        Reason::WriteForbidden,
        Reason::AtomicUnsupported,
        Reason::PinQuota,
        Reason::DeviceResetting,
        Reason::MediaError,
        Reason::NoPeerPath,
        Reason::DmaMaskExceeded,
        Reason::IommuRejected,
        Reason::NotifierRequired,
        Reason::ImporterQuota,
        Reason::StaleContext,
    ];

    /// The name, as in metrics and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Reason::NotRegularFile => "NotRegularFile",
            Reason::Hole => "Hole",
            Reason::Unwritten => "Unwritten",
            Reason::BeyondEof => "BeyondEof",
            Reason::Misaligned => "Misaligned",
            Reason::PageCacheDirty => "PageCacheDirty",
            Reason::PageCached => "PageCached",
            Reason::CpuWriter => "CpuWriter",
            Reason::SharedExtent => "SharedExtent",
            Reason::Policy => "Policy",
            Reason::ReadOnly => "ReadOnly",
            Reason::Busy => "Busy",
            Reason::NoAperture => "NoAperture",
            Reason::ApertureFull => "ApertureFull",
            Reason::NoGrantObject => "NoGrantObject",
            Reason::WriteForbidden => "WriteForbidden",
            Reason::AtomicUnsupported => "AtomicUnsupported",
            Reason::PinQuota => "PinQuota",
            Reason::DeviceResetting => "DeviceResetting",
            Reason::MediaError => "MediaError",
            Reason::NoPeerPath => "NoPeerPath",
            Reason::DmaMaskExceeded => "DmaMaskExceeded",
            Reason::IommuRejected => "IommuRejected",
            Reason::NotifierRequired => "NotifierRequired",
            Reason::ImporterQuota => "ImporterQuota",
            Reason::StaleContext => "StaleContext",
        }
    }

    /// The number in ioctl answers.
    pub fn code(self) -> u32 {
        self as u32
    }

    /// The inverse of [`Reason::code`].
    pub fn from_code(code: u32) -> Option<Reason> {
        Reason::ALL.iter().copied().find(|reason| reason.code() == code)
    }

    /// Its place among counters of [`REASON_SLOTS`]: the n-th reason, in the order of their codes, has place n.
    pub fn slot(self) -> usize {
        Reason::ALL.iter().position(|known| *known == self).map_or(0, |at| at + 1)
    }

    /// The inverse of [`Reason::slot`]; place 0 is no reason's.
    pub fn from_slot(slot: usize) -> Option<Reason> {
        Reason::ALL.get(slot.checked_sub(1)?).copied()
    }

    /// The stage that gives this reason.
    pub fn stage(self) -> Stage {
        match self.code() {
            0..32 => Stage::Filesystem,
            32..64 => Stage::BlockDevice,
            _ => Stage::PeerPath,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a direct mapping ended. The numbers are part of the ABI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum Trigger {
    /// The file was shortened.
    Truncate = 1,
    /// Blocks of the range were freed or zeroed.
    Punch = 2,
    /// The last link and handle of the file went away.
    Unlink = 3,
    /// A program used the range through the page cache.
    CpuAccess = 4,
    /// Another request needed the aperture space.
    AperturePressure = 5,
    /// The blocks of the range changed place.
    Relocation = 6,
    /// An administrator revoked it.
    Administrator = 7,
    /// The client that held it ended.
    ClientGone = 8,
    /// The filesystem is being unmounted.
    Unmount = 9,
    /// The storage device was reset, removed or reported a media error, or the way to it changed.
    DeviceEvent = 10,
    /// The policy of the file or mount changed.
    PolicyChange = 11,
    /// The client gave it back.
    Unmap = 12,
    /// The blocks of the range became shared with another file.
    Reflink = 13,
}

impl Trigger {
    /// Every trigger.
    pub const ALL: &'static [Trigger] = &[
        Trigger::Truncate,
        Trigger::Punch,
        Trigger::Unlink,
        Trigger::CpuAccess,
        Trigger::AperturePressure,
        Trigger::Relocation,
        Trigger::Administrator,
        Trigger::ClientGone,
        Trigger::Unmount,
        Trigger::DeviceEvent,
        Trigger::PolicyChange,
        Trigger::Unmap,
        Trigger::Reflink,
    ];

    /// The name, as in metrics and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Trigger::Truncate => "Truncate",
            Trigger::Punch => "Punch",
            Trigger::Unlink => "Unlink",
            Trigger::CpuAccess => "CpuAccess",
            Trigger::AperturePressure => "AperturePressure",
            Trigger::Relocation => "Relocation",
            Trigger::Administrator => "Administrator",
            Trigger::ClientGone => "ClientGone",
            Trigger::Unmount => "Unmount",
            Trigger::DeviceEvent => "DeviceEvent",
            Trigger::PolicyChange => "PolicyChange",
            Trigger::Unmap => "Unmap",
            Trigger::Reflink => "Reflink",
        }
    }

    /// The number in events.
    pub fn code(self) -> u32 {
        self as u32
    }

    /// The inverse of [`Trigger::code`].
    pub fn from_code(code: u32) -> Option<Trigger> {
        Trigger::ALL.iter().copied().find(|trigger| trigger.code() == code)
    }
}

impl fmt::Display for Trigger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which way bytes went (path attestation).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum Path {
    /// Main memory filled by the filesystem.
    Fallback = 0,
    /// A software aperture in memory.
    DirectWindow = 1,
    /// A device's PCI BAR.
    DirectBar = 2,
}

impl Path {
    /// The label, as in reports and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Path::Fallback => "fallback",
            Path::DirectWindow => "direct-window",
            Path::DirectBar => "direct-bar",
        }
    }

    /// The inverse of the number in ioctl answers.
    pub fn from_code(code: u32) -> Option<Path> {
        [Path::Fallback, Path::DirectWindow, Path::DirectBar].into_iter().find(|path| *path as u32 == code)
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_round_trip_and_stages_follow_the_pipeline() {
        for &reason in Reason::ALL {
            assert_eq!(Reason::from_code(reason.code()), Some(reason));
            assert_eq!(Reason::from_slot(reason.slot()), Some(reason));
        }
        assert!(Reason::ALL.windows(2).all(|w| w[0] < w[1] && w[0].stage() <= w[1].stage()));
        for &trigger in Trigger::ALL {
            assert_eq!(Trigger::from_code(trigger.code()), Some(trigger));
        }
        assert_eq!(Reason::from_code(0), None);
        assert_eq!((Reason::from_slot(0), Reason::from_slot(REASON_SLOTS)), (None, None));
    }
}
