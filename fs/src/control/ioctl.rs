//! Decoding and answering ioctls. Everything that arrives here is hostile.

use std::fs::File;
use std::os::fd::OwnedFd;

use peerfs_abi::devmem;
use peerfs_abi::ioctl::{self as abi, Ack, Context, Info, Map, Revoke, Segment, Unmap, revoke_flags};
use peerfs_abi::names::{SERVER_IMPORTER, importer_flags};
use peerfs_abi::{ABI_VERSION, ImporterFlags, MapFlags, Path};
use peerfs_blockdev::PathKind;
use peerfs_blockdev::pci::PciAddress;
use peerfs_p2p::{
    Asker, BindError, CacheProbe, Client, ContextId, DeviceMapOps, GrantId, GrantObject, Importer, MapCall, MapError, MapRequest,
    MapSegment, MappingId, Moved, ObjectId, Placement, Range, RevokeReport, SessionError, SessionId, Trigger, UnmapCall,
};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::Control;
use super::FITRIM;
use super::names::{is_device_memory, is_virtual, object};
use crate::error::{FsError, Result};
use crate::types::{Caller, Handle, Ino};

/// Bytes that one report counts for at most: one client's nonsense is not to drown what the others report.
const REPORT_MAX: u64 = 1 << 48;

/// Commands that never wait and may run on a serving thread: acknowledgements
/// above all, since whatever waits for them may occupy the pool.
pub fn is_quick(command: u32) -> bool {
    matches!(command, abi::ACK | abi::INFO)
}

/// One ioctl: who, on what.
pub(super) struct Call<'a> {
    pub control: &'a Control,
    pub caller: Caller,
    pub ino: Ino,
    pub handle: Handle,
}

fn reported(revoke: Revoke, report: RevokeReport) -> Revoke {
    let latency_us = u64::try_from(report.latency.as_micros()).unwrap_or(u64::MAX);
    Revoke { revoked: report.revoked, enforced: report.enforced, latency_us, ..revoke }
}

pub(super) fn invalid<T>() -> Result<T> {
    Err(FsError::errno(libc::EINVAL))
}

/// The structure that the command's number promises.
fn decode<T: FromBytes + KnownLayout + Immutable>(input: &[u8]) -> Result<T> {
    T::read_from_bytes(input).or_else(|_| invalid())
}

pub(super) fn check_version(version: u32) -> Result<()> {
    if version == ABI_VERSION { Ok(()) } else { Err(FsError::errno(libc::EPROTO)) }
}

impl Call<'_> {
    /// Carries the command out. `out_size` is what the caller can take.
    pub fn run(&self, command: u32, input: &[u8], out_size: usize) -> Result<Vec<u8>> {
        let output = match command {
            abi::QUERY => self.query(decode(input)?)?.as_bytes().to_vec(),
            abi::MAP => self.map(decode(input)?)?.as_bytes().to_vec(),
            abi::UNMAP => self.unmap(decode(input)?)?.as_bytes().to_vec(),
            abi::REVOKE => self.revoke(decode(input)?)?.as_bytes().to_vec(),
            abi::CONTEXT => self.context(decode(input)?)?.as_bytes().to_vec(),
            abi::ACK => self.ack(decode(input)?)?.as_bytes().to_vec(),
            abi::INFO => self.info(decode(input)?)?.as_bytes().to_vec(),
            abi::READ_BY_SERVER => self.read_by_server(decode(input)?)?.as_bytes().to_vec(),
            abi::COPY => self.copy(decode(input)?)?.as_bytes().to_vec(),
            abi::REFLINK => self.reflink(decode(input)?)?.as_bytes().to_vec(),
            devmem::DEVICE_MEMORY => {
                let call = decode(input)?;
                self.control.device_memory(self.session()?, self.client()?, self.caller, call)?.as_bytes().to_vec()
            }
            FITRIM => self.trim(decode(input)?)?.as_bytes().to_vec(),
            _ => return Err(FsError::errno(libc::ENOTTY)),
        };
        if output.len() > out_size { invalid() } else { Ok(output) }
    }

    fn client(&self) -> Result<Client> {
        let tgid = peerfs_sys::thread_group(self.caller.tid).map_err(|_| FsError::errno(libc::ESRCH))?;
        Ok(Client { tgid, uid: self.caller.uid })
    }

    fn session(&self) -> Result<SessionId> {
        self.control.session(self.ino, self.handle).ok_or(FsError::errno(libc::ENOTTY))
    }

    /// Reading and writing as the handle allows, if it is one of this file.
    pub(super) fn access(&self) -> Option<(bool, bool)> {
        // By the inode: handles of the volume and of virtual files are numbered apart from each other.
        if is_device_memory(self.ino) {
            let (id, read, write) = self.control.opened_device_memory(self.handle)?;
            return (object(self.ino) == ObjectId::device_memory(id)).then_some((read, write));
        }
        let handle = self.control.core.handle_info(self.handle).filter(|handle| handle.ino == self.ino)?;
        Some((handle.read, handle.write))
    }

    /// The request of a QUERY or MAP.
    fn request(&self, map: &Map) -> Result<MapRequest> {
        check_version(map.abi_version)?;
        let Some(flags) = MapFlags::from_bits(map.flags) else { return invalid() };
        let Some(last) = map.offset.checked_add(map.length) else { return invalid() };
        let end = if map.length == 0 { u64::MAX } else { last };
        Ok(MapRequest {
            object: object(self.ino),
            range: Range { start: map.offset, end },
            flags,
            handle_writable: self.access().is_some_and(|access| access.1),
            uid: self.caller.uid,
            cache_probe: (map.file_fd >= 0).then_some(CacheProbe { tid: self.caller.tid, fd: map.file_fd }),
        })
    }

    fn query(&self, mut map: Map) -> Result<Map> {
        let mut request = self.request(&map)?;
        request.flags |= MapFlags::QUERY;
        let named = self.importer_of(&map)?;
        let asker = match map.context_id {
            0 => Asker::Importer(&named),
            id => Asker::Context(ContextId(id), self.client()?),
        };
        let answer = self.control.engine.device_query(asker, &request, abi::SEGMENTS_MAX).map_err(|error| map_error(&error))?;
        for (slot, decision) in map.segments.iter_mut().zip(&answer.decisions) {
            *slot = Segment::new_zeroed();
            slot.file_offset = decision.range.start;
            slot.length = decision.range.length();
            slot.refusals = decision.refusals.bits();
            slot.triggers = decision.triggers.bits();
            match decision.placement {
                Placement::Direct { path, device_offset } => {
                    slot.path = attested(path) as u32;
                    slot.device_offset = device_offset;
                }
                Placement::Fallback(reason) => slot.reason = reason.code(),
            }
        }
        map.segment_count = answer.decisions.len() as u32;
        map.next_offset = answer.next_offset;
        map.end_offset = answer.end_offset;
        map.retry_after_ms = answer.retry_after_ms;
        Ok(map)
    }

    /// The importer that a QUERY without context is decided for: one that the server drives, or one of the names of
    /// [`peerfs_abi::names::importer_flags`], and after `@` its PCI address if it has one.
    fn importer_of(&self, map: &Map) -> Result<Importer> {
        let name = importer_name(&map.importer)?;
        if let Some(own) = self.control.own_importer(&name) {
            return Ok(own);
        }
        let (kind, address) = match name.split_once('@') {
            Some((kind, address)) => (kind, Some(address.parse().or_else(|_| invalid())?)),
            None => (name.as_str(), None),
        };
        let flags = importer_flags(kind).ok_or(FsError::errno(libc::ENODEV))?;
        let in_client = name != SERVER_IMPORTER;
        Ok(Importer { flags, dma_bits: 64, va_bits: 48, page_bytes: 4096, pci_address: address, in_client, name })
    }

    fn map(&self, mut map: Map) -> Result<Map> {
        let request = self.request(&map)?;
        if request.flags.contains(MapFlags::QUERY) {
            return self.query(map);
        }
        if self.access().is_some_and(|access| !access.0) {
            return Err(FsError::errno(libc::EACCES));
        }
        // Without the descriptor nothing proves that the page cache was emptied.
        if request.cache_probe.is_none() {
            return Err(FsError::errno(libc::EBADF));
        }
        let answer = self
            .control
            .engine
            .device_map(&MapCall {
                context: ContextId(map.context_id),
                client: self.client()?,
                request: &request,
                mapping: (map.mapping_id != 0).then_some(MappingId(map.mapping_id)),
                segments_max: abi::SEGMENTS_MAX,
            })
            .map_err(|error| map_error(&error))?;
        for (slot, segment) in map.segments.iter_mut().zip(&answer.segments) {
            *slot = wire_segment(segment);
        }
        map.mapping_id = answer.mapping.map_or(0, |mapping| mapping.0);
        map.segment_count = answer.segments.len() as u32;
        map.next_offset = answer.next_offset;
        map.end_offset = answer.end_offset;
        map.retry_after_ms = answer.retry_after_ms;
        Ok(map)
    }

    fn unmap(&self, unmap: Unmap) -> Result<Unmap> {
        check_version(unmap.abi_version)?;
        if unmap.report_only > 1 {
            return invalid();
        }
        let call = UnmapCall {
            session: self.session()?,
            client: self.client()?,
            mapping: MappingId(unmap.mapping_id),
            report_only: unmap.report_only == 1,
            moved: Moved {
                direct_window: unmap.bytes_direct_window.min(REPORT_MAX),
                direct_bar: unmap.bytes_direct_bar.min(REPORT_MAX),
                fallback: unmap.bytes_fallback.map(|bytes| bytes.min(REPORT_MAX)),
            },
        };
        self.control.engine.device_unmap(&call).map_err(|error| map_error(&error))?;
        Ok(unmap)
    }

    fn revoke(&self, mut revoke: Revoke) -> Result<Revoke> {
        check_version(revoke.abi_version)?;
        let Some(last) = revoke.offset.checked_add(revoke.length) else { return invalid() };
        let range = Range { start: revoke.offset, end: if revoke.length == 0 { u64::MAX } else { last } };
        if revoke.flags == revoke_flags::MAPPING {
            return self.revoke_mapping(revoke);
        }
        let everything = revoke.flags & revoke_flags::WHOLE_MOUNT != 0;
        let pins = revoke.flags & revoke_flags::PINS != 0;
        if revoke.flags & !(revoke_flags::WHOLE_MOUNT | revoke_flags::PINS) != 0 || revoke.mapping_id != 0 {
            return invalid();
        }
        if everything || pins {
            self.control.owner_only(self.caller)?;
        } else {
            self.may_revoke()?;
        }
        let engine = &self.control.engine;
        let object = (!everything).then_some(object(self.ino));
        let mut report = engine.revoke(object, range, Trigger::Administrator);
        if pins {
            let forced = engine.revoke_pins(object, range, Trigger::Administrator);
            revoke.pins_cut = forced.cut;
            revoke.pins_detached = forced.detached;
            report.latency = report.latency.max(forced.latency);
        }
        Ok(reported(revoke, report))
    }

    fn revoke_mapping(&self, revoke: Revoke) -> Result<Revoke> {
        self.control.owner_only(self.caller)?;
        if revoke.offset != 0 || revoke.length != 0 {
            return invalid();
        }
        let report = self.control.engine.revoke_mapping(MappingId(revoke.mapping_id), Trigger::Administrator);
        report.map(|report| reported(revoke, report)).ok_or_else(|| FsError::errno(libc::ENOENT))
    }

    /// Who may write a file may take mappings of it away (a write would do the same), and so may the mount's owner.
    fn may_revoke(&self) -> Result<()> {
        let writable = self.access().is_some_and(|access| access.1);
        let attr = if is_virtual(self.ino) { self.control.getattr(self.ino) } else { self.control.core.attr(self.ino) };
        let owns = attr.is_ok_and(|attr| attr.uid == self.caller.uid);
        if writable || owns { Ok(()) } else { self.control.owner_only(self.caller) }
    }

    fn context(&self, mut context: Context) -> Result<Context> {
        check_version(context.abi_version)?;
        let session = self.session()?;
        let client = self.client()?;
        let Some(flags) = ImporterFlags::from_bits(context.importer_flags) else { return invalid() };
        let widths_fit = (1..=64).contains(&context.dma_bits) && (1..=64).contains(&context.va_bits);
        if !widths_fit || !context.page_bytes.is_power_of_two() || context.page_bytes < 4096 {
            return invalid();
        }
        let name = importer_name(&context.importer)?;
        let importer = Importer {
            name,
            flags,
            dma_bits: context.dma_bits,
            va_bits: context.va_bits,
            page_bytes: context.page_bytes,
            pci_address: pci_address(&context.pci_address)?,
            in_client: true,
        };
        if let (Some(_), Some(bus)) = (importer.pci_address, &self.control.bus) {
            bus.look_for_importer();
        }
        // EPERM: we may not look into the client, which then falls back.
        let memory = Some(address_space(client.tgid, context.mem_fd).ok_or_else(|| FsError::errno(libc::EPERM))?);
        let bound = self.control.engine.bind_context(session, importer, client, memory).map_err(|error| bind_error(&error))?;
        context.context_id = bound.id.0;
        context.sequence_grant_id = bound.sequence_grant.0;
        context.sequence_bytes = bound.sequence_bytes;
        context.deadline_ms = bound.deadline_ms;
        context.transport = self.control.transport();
        context.socket_path = self.control.socket_field();
        Ok(context)
    }

    fn ack(&self, ack: Ack) -> Result<Ack> {
        check_version(ack.abi_version)?;
        let Some(grants) = ack.grant_ids.get(..ack.count as usize) else { return invalid() };
        let session = self.session()?;
        for grant in grants {
            // An unknown grant is no error: the cut may have been quicker.
            self.control.engine.ack(session, GrantId(*grant));
        }
        Ok(ack)
    }

    fn info(&self, mut info: Info) -> Result<Info> {
        check_version(info.abi_version)?;
        let engine = &self.control.engine;
        let object = object(self.ino);
        let space = self.control.space()?;
        let moved = engine.moved(object);
        let aperture = self.control.aperture_info();
        info.transport = self.control.transport();
        info.capacity_bytes = space.0;
        info.free_bytes = space.1;
        info.aperture_bytes = aperture.as_ref().map_or(0, |aperture| aperture.capacity_bytes);
        info.aperture_used_bytes = aperture.as_ref().map_or(0, |aperture| aperture.used_bytes);
        info.mappings = engine.mapping_count(None);
        info.file_mappings = engine.mapping_count(Some(object));
        info.file_bytes_direct = moved.direct();
        info.file_bytes_fallback = moved.fallback_total();
        info.file_fallback = moved.fallback;
        (info.revocations, info.revocations_enforced) = engine.revocation_totals();
        info.deadline_ms = self.control.deadline_ms();
        info.reserved = 0;
        Ok(info)
    }
}

/// The caller's memory, opened by us or, where we may not, the descriptor of it that the caller names. Where we are privileged nobody's descriptors are touched: one of a filesystem that
/// its owner serves might never let go of us.
fn address_space(tgid: u32, fd: i32) -> Option<OwnedFd> {
    let opened = File::open(format!("/proc/{tgid}/mem")).map(OwnedFd::from);
    match opened {
        Ok(memory) => Some(memory),
        Err(_) if fd >= 0 => peerfs_sys::duplicate_descriptor(tgid, fd).ok(),
        Err(_) => None,
    }
}

pub(super) fn importer_name(field: &[u8]) -> Result<String> {
    match abi::unpack_name(field) {
        Some("") => Ok("cpu".into()),
        Some(name) if name.bytes().all(|b| b.is_ascii_graphic()) => Ok(name.into()),
        _ => invalid(),
    }
}

fn pci_address(field: &[u8]) -> Result<Option<PciAddress>> {
    match abi::unpack_name(field) {
        Some("") => Ok(None),
        Some(text) => text.parse().map(Some).or_else(|_| invalid()),
        None => invalid(),
    }
}

/// The name under which bytes that move this way are attested.
pub(super) fn attested(path: PathKind) -> Path {
    match path {
        PathKind::DirectBar => Path::DirectBar,
        PathKind::DirectWindow => Path::DirectWindow,
    }
}

fn grant_kind(object: GrantObject) -> u32 {
    match object {
        GrantObject::Window => abi::grant_kind::WINDOW,
        GrantObject::PinnedMemfd => abi::grant_kind::PINNED_MEMFD,
        GrantObject::PinnedDmabuf => abi::grant_kind::PINNED_DMABUF,
    }
}

fn wire_segment(segment: &MapSegment) -> Segment {
    let mut wire = Segment::new_zeroed();
    wire.file_offset = segment.range.start;
    wire.length = segment.range.length();
    match segment.access {
        Ok(grant) => {
            wire.path = attested(grant.path) as u32;
            wire.grant_id = grant.id.0;
            wire.grant_offset = grant.offset;
            wire.grant_length = grant.length;
            wire.sequence_slot = grant.sequence_slot;
            wire.grant_kind = grant_kind(grant.object);
            wire.sequence = grant.sequence;
        }
        Err(reason) => wire.reason = reason.code(),
    }
    wire
}

pub(super) fn map_error(error: &MapError) -> FsError {
    FsError::errno(match error {
        MapError::NoObject { .. } => libc::ENOENT,
        MapError::NoMapping { .. } => libc::EBADF,
        MapError::StaleContext => libc::ESTALE,
        MapError::Invalid => libc::EINVAL,
    })
}

pub(super) fn session_error(error: &SessionError) -> FsError {
    match error {
        SessionError::TooMany { .. } | SessionError::TooManyOfUser { .. } => FsError::errno(libc::EMFILE),
        SessionError::NoSequencePage { .. } => FsError::with_context(libc::EIO, error.to_string()),
    }
}

pub(super) fn bind_error(error: &BindError) -> FsError {
    FsError::errno(match error {
        BindError::NoSession { .. } => libc::EBADF,
        BindError::NotOwner { .. } => libc::EACCES,
        BindError::TooMany { .. } => libc::EMFILE,
        BindError::NoAddressSpace { .. } => libc::EINVAL,
        BindError::NoId => libc::EIO,
    })
}
