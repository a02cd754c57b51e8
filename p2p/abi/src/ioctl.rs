//! The ioctls and their structures.
//!
//! FUSE passes at most 16383 bytes each way and takes sizes from the command
//! number, so answers have a fixed capacity and continue: call again with
//! `offset = next_offset` until `next_offset` is the end of the range.

use crate::reason::REASON_SLOTS;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// ioctl type byte of peerfs.
pub const IOCTL_TYPE: u8 = 0xBF;

pub(crate) const fn command(nr: u32, size: usize) -> u32 {
    assert!(size < 16384, "FUSE passes at most 16383 bytes");
    const READ_WRITE: u32 = 3;
    (READ_WRITE << 30) | ((size as u32) << 16) | ((IOCTL_TYPE as u32) << 8) | nr
}

/// On any file of a mount: state of the server and of this file ([`Info`]).
pub const INFO: u32 = command(1, size_of::<Info>());
/// On a file: the decision table of a range ([`Map`], nothing changes).
pub const QUERY: u32 = command(2, size_of::<Map>());
/// On a file: maps a range for a context ([`Map`]).
pub const MAP: u32 = command(3, size_of::<Map>());
/// On a session: ends a mapping and reports what was moved through it ([`Unmap`]).
pub const UNMAP: u32 = command(4, size_of::<Unmap>());
/// On a file: revokes all direct mappings of a range, pins only when asked to ([`Revoke`]).
pub const REVOKE: u32 = command(5, size_of::<Revoke>());
/// On a session: registers an importer and binds the session to the caller's address space ([`Context`]).
pub const CONTEXT: u32 = command(6, size_of::<Context>());
/// On a session: acknowledges revocations: the importer has stopped ([`Ack`]).
pub const ACK: u32 = command(7, size_of::<Ack>());
/// On a file open for writing: makes a range of it share the blocks of another file ([`Reflink`]).
pub const REFLINK: u32 = command(8, size_of::<Reflink>());
/// On a file open for reading: the importer inside the server maps a range and reads it ([`ReadByServer`]).
pub const READ_BY_SERVER: u32 = command(10, size_of::<ReadByServer>());
/// On a file, for the mount's owner: an importer that the server drives copies a range to or from itself ([`DeviceCopy`]).
pub const COPY: u32 = command(11, size_of::<DeviceCopy>());

/// Segments in one answer.
pub const SEGMENTS_MAX: usize = 200;
/// Grants in one acknowledgement.
pub const ACKS_MAX: usize = 64;
/// Longest importer name, in bytes, including a terminating NUL.
pub const NAME_MAX: usize = 32;
/// Longest PCI address, in bytes, including a terminating NUL.
pub const PCI_ADDRESS_MAX: usize = 16;

/// A stretch of a file and how the importer reaches it.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Segment {
    /// Offset in the file, bytes.
    pub file_offset: u64,
    /// Length, bytes.
    pub length: u64,
    /// [`crate::Path`]: 0 fallback, 1 direct-window, 2 direct-bar.
    pub path: u32,
    /// [`crate::Reason`] of a fallback, 0 when direct.
    pub reason: u32,
    /// The grant to open and mmap (`MAP`, direct), else 0.
    pub grant_id: u64,
    /// Offset of the segment inside the grant, bytes.
    pub grant_offset: u64,
    /// Size of the grant, bytes: what to mmap.
    pub grant_length: u64,
    /// Offset of the first block on the storage device, bytes (`QUERY`, direct), else 0.
    pub device_offset: u64,
    /// Index of the grant's sequence number in the sequence page.
    pub sequence_slot: u32,
    /// What the grant is ([`grant_kind`]; `MAP`, direct), else 0.
    pub grant_kind: u32,
    /// Value of the sequence number while the grant is valid.
    pub sequence: u64,
    /// Every reason that would refuse this stretch, not only the first (`QUERY`): bit n stands for the
    /// n-th of them, in the order of their codes.
    pub refusals: u32,
    /// What could end a mapping of this stretch later (`QUERY`): bit n stands for trigger n.
    pub triggers: u32,
}

/// What a client is given for a direct stretch.
pub mod grant_kind {
    /// A window that may be revoked at any moment.
    pub const WINDOW: u32 = 1;
    /// A pin: a sealed memory file of its own.
    pub const PINNED_MEMFD: u32 = 2;
    /// A pin: a dma-buf made by udmabuf over such a file.
    pub const PINNED_DMABUF: u32 = 3;
}

/// Argument of [`QUERY`] and [`MAP`].
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Map {
    /// In: [`crate::ABI_VERSION`].
    pub abi_version: u32,
    /// In: [`crate::MapFlags`].
    pub flags: u32,
    /// In: context for `MAP`; for `QUERY` a context or 0 (then `importer` counts).
    pub context_id: u64,
    /// In: start of the range, bytes.
    pub offset: u64,
    /// In: length of the range, bytes; 0 means to the end of the file.
    pub length: u64,
    /// In (`QUERY` without context): name of the importer, NUL-padded; empty means `cpu`.
    pub importer: [u8; NAME_MAX],
    /// In: number of the descriptor this ioctl is called on; the server looks at the file's page cache through it.
    /// `MAP` answers EBADF without it.
    pub file_fd: i32,
    /// Explicit padding, zero.
    pub reserved: u32,
    /// In: 0, or the mapping to add to. Out (`MAP`): the mapping.
    pub mapping_id: u64,
    /// Out: where the answer ends; continue there until it reaches `end_offset`.
    pub next_offset: u64,
    /// Out: end of the range, bytes (with `length` 0 the end of the file).
    pub end_offset: u64,
    /// Out: segments filled in.
    pub segment_count: u32,
    /// Out: after a refused map, milliseconds after which it is worth trying again.
    pub retry_after_ms: u32,
    /// Out.
    pub segments: [Segment; SEGMENTS_MAX],
}

/// Argument of [`UNMAP`].
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Unmap {
    /// In: [`crate::ABI_VERSION`].
    pub abi_version: u32,
    /// In: 0 ends the mapping; 1 only adds the byte counts.
    pub report_only: u32,
    /// In.
    pub mapping_id: u64,
    /// In: bytes the importer moved through a software aperture since the last report.
    pub bytes_direct_window: u64,
    /// In: bytes it moved through a device's BAR since the last report.
    pub bytes_direct_bar: u64,
    /// In: bytes it moved by fallback since the last report: at n for the n-th reason, in the order of their codes;
    /// at 0 what was direct when it was mapped, and was revoked since.
    pub bytes_fallback: [u64; REASON_SLOTS],
}

/// What [`REVOKE`] is to revoke.
pub mod revoke_flags {
    /// Every mapping of the mount (owner of the mount only); the range does not count.
    pub const WHOLE_MOUNT: u32 = 1;
    /// Pins too, by force (owner of the mount only).
    pub const PINS: u32 = 2;
    /// One mapping, by its number in the ledger, instead of a range (owner of the mount only); no other flag beside it.
    /// Windows that others hold as well end for them too.
    pub const MAPPING: u32 = 4;
}

/// Argument of [`REVOKE`].
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Revoke {
    /// In: [`crate::ABI_VERSION`].
    pub abi_version: u32,
    /// In: [`revoke_flags`].
    pub flags: u32,
    /// In: start of the range, bytes.
    pub offset: u64,
    /// In: length, bytes; 0 means to the end.
    pub length: u64,
    /// Out: grants that were revoked.
    pub revoked: u64,
    /// Out: time to the cut, microseconds.
    pub latency_us: u64,
    /// Out: grants that had to be cut without an acknowledgement.
    pub enforced: u64,
    /// Out: pins that were cut.
    pub pins_cut: u64,
    /// Out: pins whose memory is a dma-buf, which nothing can cut: the file goes on without them, and what their
    /// importers write later is discarded.
    pub pins_detached: u64,
    /// In: the mapping, with [`revoke_flags::MAPPING`]; ENOENT if there is none. Else 0.
    pub mapping_id: u64,
}

/// How a client gets at the memory of a grant.
pub mod transport {
    /// Open the grant's file in the control directory and mmap it.
    pub const PASSTHROUGH: u32 = 1;
    /// Ask for a descriptor on the Unix socket [`super::Context::socket_path`].
    pub const SOCKET: u32 = 2;
}

/// Argument of [`CONTEXT`].
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Context {
    /// In: [`crate::ABI_VERSION`].
    pub abi_version: u32,
    /// In: [`crate::ImporterFlags`].
    pub importer_flags: u32,
    /// In: name of the importer, NUL-padded; empty means `cpu`.
    pub importer: [u8; NAME_MAX],
    /// In: bits of address the importer can put on the bus.
    pub dma_bits: u32,
    /// In: bits of virtual address the importer can use.
    pub va_bits: u32,
    /// In: the importer's page size, bytes.
    pub page_bytes: u32,
    /// In: a descriptor of the caller's own `/proc/self/mem`, opened read-only; it stays the caller's.
    /// A server that may open the caller's memory itself does so instead.
    pub mem_fd: i32,
    /// Out: the context, never reused on this volume.
    pub context_id: u64,
    /// Out: grant of the sequence page: an array of u64, slot 0 is non-zero once the server is gone.
    pub sequence_grant_id: u64,
    /// Out: size of the sequence page, bytes.
    pub sequence_bytes: u64,
    /// Out: how to get grants ([`transport`]).
    pub transport: u32,
    /// Out: how long an importer may take to acknowledge a revocation, milliseconds.
    pub deadline_ms: u32,
    /// Out: path of the grant socket, NUL-padded, for [`transport::SOCKET`].
    pub socket_path: [u8; 108],
    /// In: PCI address of the importer (`0000:01:00.0`), NUL-padded; empty: it is software and needs no peer path.
    pub pci_address: [u8; PCI_ADDRESS_MAX],
    /// Explicit padding, zero.
    pub reserved: u32,
}

/// Argument of [`ACK`].
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Ack {
    /// In: [`crate::ABI_VERSION`].
    pub abi_version: u32,
    /// In: how many of `grant_ids` count.
    pub count: u32,
    /// In: the grants the importer has stopped using.
    pub grant_ids: [u64; ACKS_MAX],
}

/// What a [`REFLINK`] is to do.
pub mod reflink {
    /// On the source, open for reading: answers its name. Who has it may clone the file while it is open.
    pub const NAME_SOURCE: u32 = 1;
    /// On the destination: clones the range.
    pub const CLONE: u32 = 2;
}

/// Argument of [`REFLINK`]. Descriptors cannot be passed to a server, and numbers of descriptors or inodes prove
/// nothing; so the source is asked first for a name that cannot be guessed, which then stands for it.
///
/// EXDEV: no open file of this mount has the name. EINVAL: offsets or length are not multiples of 4096 (but for a
/// range that ends where both files end), the range leaves the source, or the two ranges overlap. EISDIR, EBADF (not
/// open for reading or writing), ETXTBSY (a pin reaches the source), EFBIG, ENOSPC, EROFS.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Reflink {
    /// In: [`crate::ABI_VERSION`].
    pub abi_version: u32,
    /// In: what to do ([`reflink`]).
    pub operation: u32,
    /// Out of `NAME_SOURCE`, into `CLONE`.
    pub source_name: u64,
    /// In: start of the range in the source, bytes.
    pub source_offset: u64,
    /// In: start of the range in the destination, bytes.
    pub destination_offset: u64,
    /// In: length, bytes; 0 means to the end of the source. Out: bytes cloned.
    pub length: u64,
}

/// Most bytes of one [`READ_BY_SERVER`].
pub const READ_BY_SERVER_MAX: u64 = 16 << 20;

/// Argument of [`READ_BY_SERVER`]: what no process can be given (the memory of a BAR) is reached inside the server, which
/// answers with a checksum and with the ways the bytes went.
///
/// EACCES: not open for reading. EBADF: `file_fd` is missing. EINVAL: the range is empty or longer than
/// [`READ_BY_SERVER_MAX`]. EMFILE: the user has as many sessions as one may. ENOTTY: not a file. EIO.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ReadByServer {
    /// In: [`crate::ABI_VERSION`].
    pub abi_version: u32,
    /// In: the descriptor this call is made on, as in [`Map`].
    pub file_fd: i32,
    /// In: start of the range, bytes.
    pub offset: u64,
    /// In: length, bytes. Out: bytes read, less at the end of the file.
    pub length: u64,
    /// In: CRC-32C of what comes before the range, 0 for nothing. Out: with the range.
    pub crc32c: u32,
    /// Out: [`crate::Reason`] of most of the bytes that fell back; 0 if none did, or what was direct was revoked.
    pub reason: u32,
    /// Out: bytes through windows of a software aperture.
    pub bytes_direct_window: u64,
    /// Out: bytes through a BAR.
    pub bytes_direct_bar: u64,
    /// Out: bytes by fallback.
    pub bytes_fallback: u64,
}

/// Most bytes of one [`COPY`].
pub const COPY_MAX: u64 = 16 << 20;

/// Flags of a [`DeviceCopy`].
pub mod copy_flags {
    /// Into the file. Without it, out of the file.
    pub const FROM_IMPORTER: u32 = 1;
    /// What the importer's namespace got, by this call or earlier ones, is durable when the call returns.
    pub const SYNC: u32 = 2;
}

/// Argument of [`COPY`]: device to device where that is decided, else through main memory.
///
/// EPERM: not the mount's owner. ENXIO: the mount has no such importer. ENODEV: a device is gone. EACCES: the file is not
/// open for reading (or, into the file, for writing). EBADF: `file_fd` is missing. EINVAL: the range is longer than [`COPY_MAX`], or its
/// start no multiple of the logical block. ERANGE: beyond the end of the namespace. EBUSY: the importer is copying for
/// as many as it can. EIO.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DeviceCopy {
    /// In: [`crate::ABI_VERSION`].
    pub abi_version: u32,
    /// In: the descriptor this call is made on, as in [`Map`].
    pub file_fd: i32,
    /// In: the importer, `nvme:` and its PCI address, NUL-padded.
    pub importer: [u8; NAME_MAX],
    /// In: [`copy_flags`].
    pub flags: u32,
    /// Out: size of a logical block of the importer, bytes.
    pub block_bytes: u32,
    /// In: start of the range in the file, bytes.
    pub offset: u64,
    /// In: length, bytes; with 0 nothing is copied. Out: bytes copied, less at the end of the file.
    pub length: u64,
    /// In: the importer's first logical block. One that the range fills only in part gets zeros behind it.
    pub block: u64,
    /// Out: bytes through windows of a software aperture.
    pub bytes_direct_window: u64,
    /// Out: bytes through a BAR.
    pub bytes_direct_bar: u64,
    /// Out: bytes by fallback.
    pub bytes_fallback: u64,
    /// Out: those of them that were to go directly, and were revoked first.
    pub bytes_revoked: u64,
    /// Out: [`crate::Reason`] of most of the other bytes that fell back; 0 if there were none.
    pub reason: u32,
    /// Out: how often the importer may have lost what it had not made durable. In, with [`copy_flags::SYNC`]: as the first
    /// call answered; EIO if it has done so since.
    pub cache_losses: u32,
}

/// What read(2) on a session returns: one revocation. Read with a buffer of a whole number of these.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Event {
    /// The grant to stop using.
    pub grant_id: u64,
    /// The mapping it belongs to.
    pub mapping_id: u64,
    /// Start of the range in the file, bytes.
    pub file_offset: u64,
    /// Length of the range, bytes.
    pub length: u64,
    /// [`crate::Trigger`].
    pub trigger: u32,
    /// Time left to acknowledge, milliseconds.
    pub deadline_ms: u32,
}

/// Argument of [`INFO`]; all out but the version.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Info {
    /// In/out: [`crate::ABI_VERSION`].
    pub abi_version: u32,
    /// How clients get grants ([`transport`]).
    pub transport: u32,
    /// Capacity of the volume, bytes.
    pub capacity_bytes: u64,
    /// Free space, bytes.
    pub free_bytes: u64,
    /// Size of the aperture, bytes; 0 when there is none.
    pub aperture_bytes: u64,
    /// Aperture space in use, bytes.
    pub aperture_used_bytes: u64,
    /// Live mappings of the mount.
    pub mappings: u64,
    /// Live mappings of this file.
    pub file_mappings: u64,
    /// Bytes of this file moved directly, as reported by importers.
    pub file_bytes_direct: u64,
    /// Bytes of this file moved by fallback, as reported by importers.
    pub file_bytes_fallback: u64,
    /// The same, by reason, as in [`Unmap::bytes_fallback`].
    pub file_fallback: [u64; REASON_SLOTS],
    /// Revocations since the mount.
    pub revocations: u64,
    /// Revocations that had to be enforced at the deadline.
    pub revocations_enforced: u64,
    /// Revocation deadline, milliseconds.
    pub deadline_ms: u32,
    /// Explicit padding, zero.
    pub reserved: u32,
}

const _: () = {
    assert!(size_of::<Segment>() == 80);
    assert!(size_of::<Map>() == 104 + SEGMENTS_MAX * 80);
    assert!(size_of::<Unmap>() == 32 + REASON_SLOTS * 8);
    assert!(size_of::<Revoke>() == 72);
    assert!(size_of::<Context>() == 216);
    assert!(size_of::<Ack>() == 8 + ACKS_MAX * 8);
    assert!(size_of::<Reflink>() == 40);
    assert!(size_of::<Event>() == 40);
    assert!(size_of::<Info>() == 96 + REASON_SLOTS * 8);
};

/// A name in a fixed, NUL-padded field; `None` when it does not fit.
pub fn pack_name<const N: usize>(name: &str) -> Option<[u8; N]> {
    let mut field = [0; N];
    if name.len() >= N || name.bytes().any(|b| b == 0) {
        return None;
    }
    field[..name.len()].copy_from_slice(name.as_bytes());
    Some(field)
}

/// The inverse of [`pack_name`]; `None` when it is not UTF-8 or not terminated.
pub fn unpack_name(field: &[u8]) -> Option<&str> {
    let end = field.iter().position(|b| *b == 0)?;
    std::str::from_utf8(&field[..end]).ok()
}
