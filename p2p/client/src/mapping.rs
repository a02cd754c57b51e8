//! A mapping: the segments of a file's range, and moving bytes through them.

use std::fmt;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use peerfs_abi::ioctl::Unmap;
use peerfs_abi::{ABI_VERSION, MapFlags, Path, REASON_SLOTS, Reason};
use peerfs_sys::{Fault, Window};

use crate::grant::{Grant, Revocation, Shared};
use crate::registry::lock;
use crate::segment::Granted;
use crate::session::Owner;
use crate::{AccessGuard, Attestation, Error, File, PinKind, Segment};

/// A mapped range of a file. Dropping it ends the mapping, and waits for a callback of it that runs, as [`Mapping::unmap`].
pub struct Mapping {
    owner: Arc<Owner>,
    file: File,
    id: u64,
    start: u64,
    end: u64,
    flags: MapFlags,
    retry_after: Option<Duration>,
    segments: Vec<Segment>,
    /// Parallel to `segments`.
    places: Vec<Option<Place>>,
    shared: Arc<Shared>,
    reported: Mutex<Report>,
    ended: AtomicBool,
}

/// What the server was told to have moved.
#[derive(Default)]
struct Report {
    total: Attestation,
    by_reason: [u64; REASON_SLOTS],
}

/// A pin: memory with stretches of a file in it.
#[derive(Debug, Clone, Copy)]
pub struct Pinned<'m> {
    /// What of the file the first byte of the memory is.
    pub file_offset: u64,
    /// Size of the memory, bytes; what lies between the segments reads as zeros.
    pub length: u64,
    /// What it is.
    pub kind: PinKind,
    /// The mapping's own descriptor of it.
    pub fd: BorrowedFd<'m>,
}

/// Where a segment lies in its grant.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) grant: Arc<Grant>,
    /// Offset in the window, bytes.
    pub(crate) offset: u64,
}

/// A part of a transfer that lies in one segment.
pub(crate) struct Part {
    pub(crate) length: usize,
    pub(crate) place: Option<Place>,
    /// Why there is no place.
    pub(crate) reason: Option<Reason>,
}

impl Mapping {
    pub(crate) fn new(owner: Arc<Owner>, file: File, start: u64, flags: MapFlags) -> Mapping {
        Mapping {
            owner,
            file,
            id: 0,
            start,
            end: start,
            flags,
            retry_after: None,
            segments: Vec::new(),
            places: Vec::new(),
            shared: Arc::new(Shared::default()),
            reported: Mutex::default(),
            ended: AtomicBool::new(false),
        }
    }

    pub(crate) fn note_answer(&mut self, id: u64, end: u64, retry_after: Option<Duration>) {
        self.id = id;
        self.shared.mapping_id.store(id, Ordering::Release);
        self.end = end.max(self.start);
        self.retry_after = self.retry_after.max(retry_after);
    }

    pub(crate) fn push(&mut self, piece: Granted, grant: Option<Arc<Grant>>) {
        let offset = piece.grant.map_or(0, |place| place.offset);
        self.segments.push(piece.segment);
        self.places.push(grant.map(|grant| Place { grant, offset }));
    }

    pub(crate) fn writable(&self) -> bool {
        self.flags.writes()
    }

    pub(crate) fn atomic(&self) -> bool {
        self.flags.contains(MapFlags::ATOMIC)
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The segments with their grants.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = (&Segment, Option<&Place>)> {
        self.segments.iter().zip(self.places.iter().map(Option::as_ref))
    }

    /// Has any part that was direct been revoked, as far as this session has heard?
    pub(crate) fn has_lost(&self) -> bool {
        self.places.iter().flatten().any(|place| place.grant.is_closed())
    }

    /// The server's number of the mapping.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The range that is mapped, in the file, bytes.
    pub fn range(&self) -> Range<u64> {
        self.start..self.end
    }

    /// How each stretch was decided when it was mapped; a revocation does not change it.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The pins behind the segments, in order: what to hand to other processes and drivers. A pin lives until its last
    /// holder is gone, whoever that is; this mapping is one while it lives.
    pub fn pins(&self) -> Vec<Pinned<'_>> {
        let mut pins: Vec<Pinned<'_>> = Vec::new();
        for (segment, place) in self.pieces() {
            let (Some(kind), Some(place)) = (segment.pin, place) else { continue };
            let Some((fd, length)) = place.grant.pin() else { continue };
            if pins.last().is_none_or(|last| last.fd.as_raw_fd() != fd.as_raw_fd()) {
                pins.push(Pinned { file_offset: segment.file_offset - place.offset, length, kind, fd });
            }
        }
        pins
    }

    /// After a refusal: when it is worth mapping again.
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// What has moved through this mapping so far.
    pub fn moved(&self) -> Attestation {
        self.shared.counters.total()
    }

    /// Why bytes fell back, and how many for each reason; `None`: they were direct when mapped, and were revoked since.
    pub fn fallback_reasons(&self) -> Vec<(Option<Reason>, u64)> {
        let counts = self.shared.counters.by_reason().into_iter().enumerate();
        counts.filter(|(_, bytes)| *bytes > 0).map(|(slot, bytes)| (Reason::from_slot(slot), bytes)).collect()
    }

    /// Calls back from the session's service thread when part of the mapping is revoked, before
    /// the revocation is acknowledged. The importer must have stopped using the range, or at
    /// least hold an [`AccessGuard`], when the callback returns. It must not block. A revocation
    /// that came before this call is not reported: an access finds out. Nothing calls back once the
    /// mapping has ended, see [`Mapping::unmap`].
    pub fn on_revoke(&self, callback: impl Fn(&Revocation) + Send + Sync + 'static) {
        self.shared.callbacks.add(Arc::new(callback));
    }

    /// Reads from the file offset on until the buffer is full or the file ends. Never raises SIGBUS:
    /// what is revoked on the way is read through the filesystem.
    ///
    /// # Errors
    /// [`Error::Range`] outside the mapping, [`Error::ServerGone`], [`Error::StaleContext`], or what pread(2) answers.
    pub fn read_at(&self, offset: u64, target: &mut [u8]) -> Result<Attestation, Error> {
        self.check(offset, target.len())?;
        let mut moved = Attestation::default();
        let mut done = 0;
        while done < target.len() {
            let part = self.part(offset + done as u64, target.len() - done);
            let piece = &mut target[done..done + part.length];
            let path = direct(part.place.as_ref(), |window, at| window.read(at, piece))?;
            let count = match path {
                Some(_) => part.length,
                None => self.file.read_at(offset + done as u64, piece)?,
            };
            self.count(&mut moved, path, part.reason, count as u64);
            done += count;
            if count < part.length {
                break;
            }
        }
        Ok(moved)
    }

    /// Writes all of `source` at the file offset, with the same promise as [`Mapping::read_at`].
    ///
    /// # Errors
    /// As [`Mapping::read_at`]; [`Error::ReadOnly`] when not mapped with [`MapFlags::WRITE`].
    pub fn write_at(&self, offset: u64, source: &[u8]) -> Result<Attestation, Error> {
        if !self.writable() {
            return Err(Error::ReadOnly);
        }
        self.check(offset, source.len())?;
        let mut moved = Attestation::default();
        let mut done = 0;
        while done < source.len() {
            let part = self.part(offset + done as u64, source.len() - done);
            let piece = &source[done..done + part.length];
            let path = direct(part.place.as_ref(), |window, at| window.write(at, piece))?;
            if path.is_none() {
                self.file.write_at(offset + done as u64, piece)?;
            }
            self.count(&mut moved, path, part.reason, part.length as u64);
            done += part.length;
        }
        Ok(moved)
    }

    /// At once, since a later part of the call may fail.
    fn count(&self, moved: &mut Attestation, path: Option<Path>, reason: Option<Reason>, bytes: u64) {
        let mut part = Attestation::default();
        part.count(path.unwrap_or(Path::Fallback), bytes);
        self.shared.counters.add(part);
        if path.is_none() {
            self.shared.counters.explain(reason, bytes);
        }
        *moved += part;
    }

    /// Takes the address of a directly mapped range. While the guard lives, a revocation is not
    /// acknowledged, but enforced at its deadline.
    ///
    /// # Errors
    /// [`Error::Fallback`] or [`Error::Revoked`] when the range is not direct (any more), [`Error::Split`]
    /// when it is in several pieces; otherwise as [`Mapping::read_at`].
    pub fn access(&self, range: Range<u64>) -> Result<AccessGuard, Error> {
        let length = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX);
        if length == 0 {
            return Err(self.outside(range.start, range.end));
        }
        self.check(range.start, length)?;
        let file_offset = range.start;
        let part = self.part(file_offset, length);
        let Some(place) = part.place else {
            return Err(Error::Fallback { file_offset, reason: self.reason_at(file_offset) });
        };
        if part.length < length {
            return Err(Error::Split { file_offset, available: part.length as u64 });
        }
        match place.grant.enter()? {
            Some(entered) => Ok(AccessGuard::new(entered, place.offset, length)),
            None => Err(Error::Revoked { file_offset }),
        }
    }

    /// Tells the server what has moved since the last report.
    ///
    /// # Errors
    /// [`Error::StaleContext`], [`Error::ServerGone`], or what the ioctl answers.
    pub fn report(&self) -> Result<(), Error> {
        self.owner.core.check()?;
        // The server knows nothing of one that it could grant nothing for.
        if self.id == 0 { Ok(()) } else { self.send(true) }
    }

    /// Ends the mapping and answers what has moved through it.
    ///
    /// No callback of the mapping starts after it has ended, and one that runs on the service thread at that moment is
    /// waited for: hold no lock here that it takes. A callback may end mappings too, its own and others: it then waits
    /// for callbacks of other sessions only, and not for one that waits for it.
    ///
    /// # Errors
    /// As [`Mapping::report`]; the mapping has ended for this process nevertheless.
    pub fn unmap(self) -> Result<Attestation, Error> {
        self.end()
    }

    /// As [`Mapping::unmap`], for those who share the mapping. It can be used as before, but everything falls back, and what
    /// moves from now on is not reported. Ending it again waits for callbacks again, and does nothing else.
    ///
    /// # Errors
    /// As [`Mapping::unmap`].
    pub fn end(&self) -> Result<Attestation, Error> {
        let core = &self.owner.core;
        if !core.is_home() {
            // The service thread does not exist in a fork child, and may have left locks behind.
            return Err(Error::StaleContext);
        }
        let first = !self.ended.swap(true, Ordering::AcqRel);
        if first {
            for place in self.places.iter().flatten() {
                core.registry.remove(&place.grant);
                place.grant.close();
            }
        }
        if let Some(service) = self.owner.service() {
            self.shared.callbacks.end(service);
        }
        core.check()?;
        if first && self.id != 0 {
            self.send(false)?;
        }
        Ok(self.moved())
    }

    fn send(&self, report_only: bool) -> Result<(), Error> {
        let mut reported = lock(&self.reported);
        let now = Report { total: self.moved(), by_reason: self.shared.counters.by_reason() };
        let mut argument = Unmap {
            abi_version: ABI_VERSION,
            report_only: report_only.into(),
            mapping_id: self.id,
            bytes_direct_window: now.total.direct_window - reported.total.direct_window,
            bytes_direct_bar: now.total.direct_bar - reported.total.direct_bar,
            bytes_fallback: std::array::from_fn(|slot| now.by_reason[slot] - reported.by_reason[slot]),
        };
        let core = &self.owner.core;
        core.calls.unmap(&mut argument).map_err(|source| Error::command("end a mapping of", &self.file.name, source))?;
        *reported = now;
        Ok(())
    }

    pub(crate) fn check(&self, offset: u64, length: usize) -> Result<(), Error> {
        self.owner.core.check()?;
        let end = offset.saturating_add(length as u64);
        match offset >= self.start && end <= self.end {
            true => Ok(()),
            false => Err(self.outside(offset, end)),
        }
    }

    fn outside(&self, start: u64, end: u64) -> Error {
        Error::Range { start, end, limit_start: self.start, limit_end: self.end }
    }

    fn index_at(&self, offset: u64) -> Option<usize> {
        let after = self.segments.partition_point(|segment| segment.file_offset <= offset);
        let index = after.checked_sub(1)?;
        (offset < self.segments[index].end()).then_some(index)
    }

    pub(crate) fn reason_at(&self, offset: u64) -> Reason {
        let segment = self.index_at(offset).map(|index| self.segments[index]);
        segment.and_then(|segment| segment.reason).unwrap_or(Reason::BeyondEof)
    }

    pub(crate) fn pin_at(&self, offset: u64) -> Option<PinKind> {
        self.index_at(offset).and_then(|index| self.segments[index].pin)
    }

    /// The longest part from `offset` on that lies in one segment. What no segment covers falls back.
    pub(crate) fn part(&self, offset: u64, length: usize) -> Part {
        let Some(index) = self.index_at(offset) else {
            return Part { length, place: None, reason: Some(Reason::BeyondEof) };
        };
        let segment = &self.segments[index];
        let left = usize::try_from(segment.end() - offset).unwrap_or(usize::MAX);
        let place = self.places[index]
            .as_ref()
            .map(|place| Place { grant: Arc::clone(&place.grant), offset: place.offset + (offset - segment.file_offset) });
        Part { length: length.min(left), place, reason: segment.reason }
    }
}

/// Copies through the window; the path when it was valid before and after, `None` when the bytes must go another way.
pub(crate) fn direct(
    place: Option<&Place>,
    copy: impl FnOnce(&Window, usize) -> Result<(), Fault>,
) -> Result<Option<Path>, Error> {
    let Some(place) = place else {
        return Ok(None);
    };
    let (Some(entered), Ok(at)) = (place.grant.enter()?, usize::try_from(place.offset)) else {
        return Ok(None);
    };
    let copied = copy(entered.window(), at).is_ok();
    let valid = entered.still_valid()?;
    Ok((copied && valid).then(|| place.grant.path()))
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // Nobody is left to tell; the server ends the mapping with the session at the latest.
        let _ = self.end();
    }
}

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Range { start, end } = self.range();
        write!(f, "Mapping({} of {}, {start}..{end})", self.id, self.file.name)
    }
}
