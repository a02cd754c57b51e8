//! Plain values that cross the boundary.

use std::ffi::{c_char, c_void};
use std::os::fd::AsRawFd;
use std::ptr;
use std::time::Duration;

use peerfs_abi::ioctl::grant_kind;
use peerfs_client::svm::{Direction, Placement};
use peerfs_client::{self as client, Attestation, ImporterFlags, ImporterSpec, PinKind, Pinned, Revocation, Revoked};
use peerfs_client::{Segment, SessionOptions, Stretch, Trigger};

use crate::failure::Failure;
use crate::raw;

/// An importer: what a program says about the device it maps for.
#[repr(C)]
pub struct PeerfsImporter {
    /// Name, at most 31 bytes; NULL means `cpu`.
    pub name: *const c_char,
    /// PCI address such as `0000:01:00.0`; NULL for software.
    pub pci_address: *const c_char,
    /// PEERFS_IMPORTER_* flags. Without PEERFS_IMPORTER_DYNAMIC it cannot honour revocation and may hold only pins.
    pub flags: u32,
    /// Bits of address it can put on the bus.
    pub dma_bits: u32,
    /// Bits of virtual address it can use.
    pub va_bits: u32,
    /// Its page size, bytes.
    pub page_bytes: u32,
}

impl PeerfsImporter {
    /// The software importer.
    pub(crate) fn cpu() -> PeerfsImporter {
        let spec = ImporterSpec::cpu();
        PeerfsImporter {
            name: ptr::null(),
            pci_address: ptr::null(),
            flags: spec.flags.bits(),
            dma_bits: spec.dma_bits,
            va_bits: spec.va_bits,
            page_bytes: spec.page_bytes,
        }
    }

    /// # Safety
    /// The strings are NULL or end with NUL.
    pub(crate) unsafe fn spec(&self) -> Result<ImporterSpec, Failure> {
        let mut spec = ImporterSpec::cpu();
        if !self.name.is_null() {
            // SAFETY: the caller's promise.
            spec.name = unsafe { raw::text(self.name, "the importer's name") }?.to_owned();
        }
        if !self.pci_address.is_null() {
            // SAFETY: the caller's promise.
            spec.pci_address = Some(unsafe { raw::text(self.pci_address, "the PCI address") }?.to_owned());
        }
        spec.flags = ImporterFlags::from_bits(self.flags).ok_or_else(|| Failure::argument("a flag of the importer"))?;
        (spec.dma_bits, spec.va_bits, spec.page_bytes) = (self.dma_bits, self.va_bits, self.page_bytes);
        Ok(spec)
    }
}

/// A piece of a file and how the importer reaches it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PeerfsPiece {
    /// Offset in the file, bytes.
    pub file_offset: u64,
    /// Length, bytes.
    pub length: u64,
    /// Where it lies on the storage device, bytes (query, direct), else 0.
    pub device_offset: u64,
    /// `enum peerfs_path`.
    pub path: u32,
    /// `enum peerfs_reason` of a fallback, the first in pipeline order, else 0.
    pub reason: u32,
    /// Every reason that refuses it, not only the first (query): bit n stands for peerfs_reason_of_bit(n).
    pub refusals: u32,
    /// What could end a mapping of it later (query, direct): bit n stands for the `enum peerfs_trigger` n.
    pub triggers: u32,
    /// What it is pinned as (map with PEERFS_MAP_PIN, direct): PEERFS_GRANT_PINNED_MEMFD or PEERFS_GRANT_PINNED_DMABUF, else 0.
    pub pin: u32,
}

impl From<&Segment> for PeerfsPiece {
    fn from(segment: &Segment) -> Self {
        PeerfsPiece {
            file_offset: segment.file_offset,
            length: segment.length,
            device_offset: segment.device_offset.unwrap_or(0),
            path: segment.path as u32,
            reason: segment.reason.map_or(0, |reason| reason.code()),
            refusals: segment.refusals.bits(),
            triggers: segment.triggers.bits(),
            pin: segment.pin.map_or(0, pin_kind),
        }
    }
}

/// A pin: memory with pieces of a file in it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PeerfsPin {
    /// What of the file the first byte of the memory is.
    pub file_offset: u64,
    /// Size of the memory, bytes; what lies between the pieces reads as zeros.
    pub length: u64,
    /// PEERFS_GRANT_PINNED_MEMFD or PEERFS_GRANT_PINNED_DMABUF.
    pub kind: u32,
    /// The mapping's own descriptor: duplicate it to keep it longer than the mapping.
    pub fd: i32,
}

impl From<&Pinned<'_>> for PeerfsPin {
    fn from(pin: &Pinned<'_>) -> Self {
        PeerfsPin { file_offset: pin.file_offset, length: pin.length, kind: pin_kind(pin.kind), fd: pin.fd.as_raw_fd() }
    }
}

fn pin_kind(kind: PinKind) -> u32 {
    match kind {
        PinKind::Memfd => grant_kind::PINNED_MEMFD,
        PinKind::Dmabuf => grant_kind::PINNED_DMABUF,
    }
}

/// Bytes moved, by path.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PeerfsMoved {
    /// Through a software aperture in memory.
    pub direct_window: u64,
    /// Through a device's BAR.
    pub direct_bar: u64,
    /// Through the filesystem.
    pub fallback: u64,
}

impl From<Attestation> for PeerfsMoved {
    fn from(moved: Attestation) -> Self {
        PeerfsMoved { direct_window: moved.direct_window, direct_bar: moved.direct_bar, fallback: moved.fallback }
    }
}

/// What is told when a direct mapping ends.
#[repr(C)]
pub struct PeerfsRevocation {
    /// The mapping.
    pub mapping_id: u64,
    /// Start of the range in the file, bytes.
    pub file_offset: u64,
    /// Length of the range, bytes.
    pub length: u64,
    /// `enum peerfs_trigger`; 0 for one newer than this library.
    pub trigger: u32,
    /// How long the importer may take to stop, milliseconds.
    pub deadline_ms: u32,
}

impl From<&Revocation> for PeerfsRevocation {
    fn from(revocation: &Revocation) -> Self {
        PeerfsRevocation {
            mapping_id: revocation.mapping_id,
            file_offset: revocation.file_offset,
            length: revocation.length,
            trigger: revocation.trigger.map_or(0, Trigger::code),
            deadline_ms: milliseconds(revocation.deadline),
        }
    }
}

/// What a revocation on demand did.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PeerfsRevoked {
    /// Grants that were revoked.
    pub grants: u64,
    /// How many of them were cut without an acknowledgement.
    pub enforced: u64,
    /// Pins that were cut.
    pub pins_cut: u64,
    /// Dma-bufs that lost the file's blocks, while their holders keep the memory.
    pub pins_detached: u64,
    /// Time to the cut, microseconds.
    pub latency_us: u64,
}

impl From<Revoked> for PeerfsRevoked {
    fn from(revoked: Revoked) -> Self {
        PeerfsRevoked {
            grants: revoked.grants,
            enforced: revoked.enforced,
            pins_cut: revoked.pins_cut,
            pins_detached: revoked.pins_detached,
            latency_us: u64::try_from(revoked.latency.as_micros()).unwrap_or(u64::MAX),
        }
    }
}

/// Called on the session's own thread before a revocation is acknowledged. It must not block, nor call what needs an answer
/// about the range from the server. It may use and end mappings; see "Callbacks" above.
pub type RevokeCallback = Option<extern "C" fn(revocation: &PeerfsRevocation, data: *mut c_void)>;

/// A duration as C gets it.
pub(crate) fn milliseconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

/// What is behind a stretch of addresses.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backing {
    /// A file of the mount, mapped for the device.
    File = 1,
    /// Memory that is no shared mapping of a regular file of the mount: it can be read, by fallback.
    Memory = 2,
    /// Nothing that the device may use: an access is an error.
    Nothing = 3,
    /// The processor's mapping ended or changed: so did the device's.
    Ended = 4,
}

/// Addresses with one thing behind them.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct PeerfsStretch {
    /// First address.
    pub address: u64,
    /// Length, bytes, in whole pages.
    pub length: u64,
    /// Inode number of the file (PEERFS_BACKING_FILE), else 0.
    pub inode: u64,
    /// Offset in the file of the first address, bytes (PEERFS_BACKING_FILE), else 0.
    pub file_offset: u64,
    /// `enum peerfs_backing`.
    pub backing: u32,
    /// Why it is no file that is mapped for the device, for people; ends with NUL.
    pub why: [c_char; 96],
}

impl From<&Stretch> for PeerfsStretch {
    fn from(stretch: &Stretch) -> Self {
        let (backing, inode, file_offset, why) = match &stretch.backing {
            client::Backing::File { inode, file_offset, .. } => (Backing::File, *inode, *file_offset, ""),
            client::Backing::Memory { why } => (Backing::Memory, 0, 0, *why),
            client::Backing::Nothing { why } => (Backing::Nothing, 0, 0, *why),
            client::Backing::Ended => (Backing::Ended, 0, 0, "the mapping was changed or removed"),
        };
        let addresses = &stretch.addresses;
        PeerfsStretch {
            address: addresses.start,
            length: addresses.end - addresses.start,
            inode,
            file_offset,
            backing: backing as u32,
            why: text(why),
        }
    }
}

/// A text as a field, cut off where it does not fit.
fn text<const N: usize>(text: &str) -> [c_char; N] {
    let mut field = [0; N];
    for (to, from) in field[..N - 1].iter_mut().zip(text.bytes()) {
        *to = from as c_char;
    }
    field
}

/// How a session behaves.
#[repr(C)]
pub struct PeerfsSessionOptions {
    /// Honour revocations. Without it the session is a hung importer: it hears of revocations and calls back, but keeps its
    /// windows and never acknowledges.
    pub acknowledge: bool,
}

impl From<&PeerfsSessionOptions> for SessionOptions {
    fn from(options: &PeerfsSessionOptions) -> Self {
        SessionOptions { acknowledge: options.acknowledge }
    }
}

/// Where a range of addresses may be placed.
#[repr(C)]
pub struct PeerfsPlacement {
    /// First address allowed.
    pub low: u64,
    /// One past the last address allowed.
    pub high: u64,
    /// What the address is a multiple of: a power of two, at least 4096.
    pub alignment: u64,
    /// Take the highest address that fits, not the lowest.
    pub top_down: bool,
}

impl From<&PeerfsPlacement> for Placement {
    fn from(wanted: &PeerfsPlacement) -> Self {
        let direction = if wanted.top_down { Direction::TopDown } else { Direction::BottomUp };
        Placement { low: wanted.low, high: wanted.high, alignment: wanted.alignment, direction }
    }
}
