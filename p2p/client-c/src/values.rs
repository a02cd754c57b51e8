//! Plain values that cross the boundary.

use std::ffi::{c_char, c_void};
use std::os::fd::AsRawFd;

use peerfs_abi::ioctl::grant_kind;
use peerfs_client::svm::{Direction, Placement};
use peerfs_client::{Attestation, ImporterFlags, ImporterSpec, PinKind, Pinned, Revocation, Segment, Trigger};

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
    /// `enum peerfs_reason` of a fallback, else 0.
    pub reason: u32,
}

impl From<&Segment> for PeerfsPiece {
    fn from(segment: &Segment) -> Self {
        PeerfsPiece {
            file_offset: segment.file_offset,
            length: segment.length,
            device_offset: segment.device_offset.unwrap_or(0),
            path: segment.path as u32,
            reason: segment.reason.map_or(0, |reason| reason.code()),
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
        let kind = match pin.kind {
            PinKind::Memfd => grant_kind::PINNED_MEMFD,
            PinKind::Dmabuf => grant_kind::PINNED_DMABUF,
        };
        PeerfsPin { file_offset: pin.file_offset, length: pin.length, kind, fd: pin.fd.as_raw_fd() }
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
            deadline_ms: u32::try_from(revocation.deadline.as_millis()).unwrap_or(u32::MAX),
        }
    }
}

/// Called on the library's own thread before a revocation is acknowledged. It must not block.
pub type RevokeCallback = Option<extern "C" fn(revocation: &PeerfsRevocation, data: *mut c_void)>;

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
