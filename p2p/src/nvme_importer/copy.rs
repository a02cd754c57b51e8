//! One copy between a range of a file and logical blocks of the importer.

use std::collections::VecDeque;
use std::sync::Arc;

use peerfs_abi::Reason;
use peerfs_blockdev::DeviceError;
use peerfs_blockdev::nvme::{Direction, Lease, LeaseError, NvmeError, PrivateQueue, Transfer, TransferError};

use super::leases::Leases;
use super::{InFlight, NvmeImporter};
use crate::api::{GrantPart, MapError, MapSegment};
use crate::engine::Engine;
use crate::inside::{InsideError, InsideSession, REVOKED, attest};
use crate::moved::Moved;
use crate::types::{MapRequest, MappingId, Range};

/// Transfers under way at one time, if the importer's queue has room for so many.
const DEPTH: usize = 4;

/// Bytes moved through main memory at a time, a multiple of every logical block.
const PIECE_BYTES: u64 = 512 << 10;

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyDirection {
    /// Out of the file.
    ToImporter,
    /// Into the file, with a request for writing.
    FromImporter,
}

/// What to copy.
#[derive(Debug, Clone, Copy)]
pub struct CopyCall<'a> {
    /// The file's side. The range starts at a multiple of the importer's logical block.
    pub request: &'a MapRequest,
    /// Which way.
    pub direction: CopyDirection,
    /// First logical block of the importer's side. A last block that the range does not fill is filled with zeros.
    pub first_block: u64,
}

/// The file as plain reads and writes see it: the fallback.
pub trait FileBytes {
    /// What they fail with.
    type Error;
    /// Fills a buffer from a file offset, as far as there is something, and says how far.
    ///
    /// # Errors
    /// The file's.
    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<usize, Self::Error>;
    /// Writes all of a buffer.
    ///
    /// # Errors
    /// The file's.
    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), Self::Error>;
}

/// Why a copy failed; any part may have been copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError<E> {
    /// The range does not begin at a logical block, or no such blocks exist.
    #[error("the range does not begin at a logical block of the importer, or reaches beyond its last one")]
    Range,
    /// The mapping.
    #[error(transparent)]
    Map(#[from] MapError),
    /// No session or context could be made.
    #[error("the importer's session: {0}")]
    Session(#[from] InsideError),
    /// The importer gives no queue.
    #[error(transparent)]
    Queue(#[from] NvmeError),
    /// The importer, by fallback.
    #[error(transparent)]
    Importer(#[from] DeviceError),
    /// The file, by fallback.
    #[error("{0}")]
    File(E),
}

/// A transfer that was sent.
struct Flight {
    transfer: Transfer,
    lease: Arc<Lease>,
    part: GrantPart,
    range: Range,
    _counted: InFlight,
}

/// One copy under way.
struct Copy<'a, F> {
    call: &'a CopyCall<'a>,
    importer: &'a Arc<NvmeImporter>,
    // Before the session: a transfer ends before its grant.
    flights: VecDeque<Flight>,
    session: InsideSession<'a>,
    leases: Arc<Leases>,
    mapping: Option<MappingId>,
    queue: Option<Arc<PrivateQueue>>,
    file: F,
    /// Ranges for the way through main memory, and the place of the reason.
    left: Vec<(Range, usize)>,
    moved: Moved,
}

/// Carries a copy out, and says which way the bytes went.
///
/// # Errors
/// See [`CopyError`].
pub fn copy<F: FileBytes>(
    engine: &Arc<Engine>,
    importer: &Arc<NvmeImporter>,
    call: &CopyCall<'_>,
    file: F,
) -> Result<Moved, CopyError<F::Error>> {
    check(importer, call)?;
    let leases = Arc::new(Leases::default());
    let told = leases.clone();
    let session = InsideSession::open(engine, call.request.uid, importer.importer(), move |grant| told.revoke(grant))?;
    let mut copy = Copy {
        call,
        importer,
        flights: VecDeque::new(),
        session,
        leases,
        mapping: None,
        queue: None,
        file,
        left: Vec::new(),
        moved: Moved::default(),
    };
    let done = copy.run();
    // Also what a copy moved that failed later.
    copy.finish()?;
    done.map(|()| copy.moved)
}

fn check<E>(importer: &NvmeImporter, call: &CopyCall<'_>) -> Result<(), CopyError<E>> {
    let block_bytes = importer.engine.block_bytes();
    let range = call.request.range;
    let blocks = range.length().div_ceil(block_bytes);
    let end = call.first_block.checked_add(blocks).filter(|end| *end <= importer.engine.blocks());
    match end.is_some() && range.start.is_multiple_of(block_bytes) {
        true => Ok(()),
        false => Err(CopyError::Range),
    }
}

impl<F: FileBytes> Copy<'_, F> {
    fn run(&mut self) -> Result<(), CopyError<F::Error>> {
        let mut range = self.call.request.range;
        while !range.is_empty() {
            let answer = self.session.map(&MapRequest { range, ..self.call.request.clone() }, self.mapping)?;
            self.mapping = answer.mapping.or(self.mapping);
            for segment in &answer.segments {
                self.begin(segment)?;
            }
            self.land_all();
            // With nothing under way: what the fallback writes may revoke what we hold ourselves.
            for (range, slot) in std::mem::take(&mut self.left) {
                self.fall_back(range, slot)?;
            }
            range = Range { start: answer.next_offset, end: answer.end_offset };
        }
        Ok(())
    }

    /// Ends the mapping, and reports what was moved.
    fn finish(&mut self) -> Result<(), MapError> {
        self.land_all();
        self.leases.end_live();
        self.mapping.take().map_or(Ok(()), |mapping| self.session.unmap(mapping, &self.moved))
    }

    /// Sends the transfers of a segment, or leaves it for later.
    fn begin(&mut self, segment: &MapSegment) -> Result<(), CopyError<F::Error>> {
        let range = segment.range;
        let mut at = range.start;
        while at < range.end {
            let rest = Range { start: at, end: range.end };
            let leased = match &segment.access {
                Ok(part) => self.lease(part)?.map(|lease| (part, lease)),
                Err(reason) => Err(reason.slot()),
            };
            let (part, lease) = match leased {
                Ok(leased) => leased,
                Err(slot) => {
                    self.left.push((rest, slot));
                    return Ok(());
                }
            };
            let offset = part.offset + (at - range.start);
            let length = self.importer.engine.max_transfer_bytes().min(lease.contiguous(offset)).min(rest.length());
            if length == 0 {
                self.left.push((rest, REVOKED));
                return Ok(());
            }
            // A queue that is full would keep the lease locked.
            let depth = self.queue.as_ref().map_or(1, |queue| queue.depth().min(DEPTH));
            if self.flights.len() >= depth {
                self.land();
            }
            let piece = Range::new(at, length);
            let direction = match self.call.direction {
                CopyDirection::ToImporter => Direction::FromWindow,
                CopyDirection::FromImporter => Direction::ToWindow,
            };
            match lease.start(direction, self.block_of(at), offset, length) {
                Ok(transfer) => {
                    let _counted = InFlight::count(self.importer);
                    self.flights.push_back(Flight { transfer, lease, part: *part, range: piece, _counted });
                }
                Err(error) => {
                    // Whoever revoked it may have met the lease locked by this attempt.
                    if matches!(error, TransferError::Revoked) && lease.stop() {
                        self.session.acknowledge(part.id);
                    }
                    self.failed(piece, &error);
                }
            }
            at += length;
        }
        Ok(())
    }

    /// The lease over the window of a grant, or the place of the reason why there is none.
    fn lease(&mut self, part: &GrantPart) -> Result<Result<Arc<Lease>, usize>, CopyError<F::Error>> {
        if self.queue.as_ref().is_some_and(|queue| queue.has_ended()) {
            // All of the old one first: its id, and its leases of the same grants.
            self.land_all();
            self.leases.end_live();
            self.queue = None;
        }
        let queue = match &self.queue {
            Some(queue) => queue.clone(),
            None => match self.importer.engine.queue() {
                Ok(queue) => self.queue.insert(queue).clone(),
                Err(NvmeError::NoQueueLeft(_)) => return Ok(Err(Reason::ImporterQuota.slot())),
                Err(error) => return Err(error.into()),
            },
        };
        let window = || self.session.window(part.id).map_err(|_| LeaseError::Revoked);
        let writable = self.call.direction == CopyDirection::FromImporter;
        let lease = self.leases.of(part.id, window, &self.importer.engine, &queue, writable);
        Ok(lease.map_err(|error| match error {
            LeaseError::Revoked => REVOKED,
            LeaseError::NotInBar => Reason::NoPeerPath.slot(),
            LeaseError::Unmappable(error) => {
                tracing::warn!(importer = self.importer.name, %error, "a window cannot be mapped for the importer");
                Reason::IommuRejected.slot()
            }
        }))
    }

    fn land_all(&mut self) {
        while self.land() {}
    }

    /// Waits for the oldest transfer. `false`: there is none.
    fn land(&mut self) -> bool {
        let Some(Flight { transfer, lease, part, range, _counted }) = self.flights.pop_front() else { return false };
        let done = transfer.finish();
        if lease.has_ended() {
            self.session.acknowledge(part.id);
        }
        match done {
            // The sequence number changes first of all, so what counts was moved before any revocation.
            Ok(()) if self.session.is_current(&part) => attest(&mut self.moved, &part, range.length()),
            Ok(()) => self.left.push((range, REVOKED)),
            Err(error) => self.failed(range, &error),
        }
        true
    }

    fn failed(&mut self, range: Range, error: &TransferError) {
        let slot = match error {
            TransferError::Revoked => REVOKED,
            TransferError::Controller(error) => {
                tracing::warn!(importer = self.importer.name, %error, "a transfer failed and is repeated through main memory");
                match error {
                    NvmeError::Command { .. } => Reason::MediaError.slot(),
                    _ => Reason::DeviceResetting.slot(),
                }
            }
        };
        self.left.push((range, slot));
    }

    fn fall_back(&mut self, range: Range, slot: usize) -> Result<(), CopyError<F::Error>> {
        let block_bytes = self.importer.engine.block_bytes();
        let mut at = range.start;
        while at < range.end {
            // What is refused may begin inside a logical block, at the file's end: the block is moved from its start on.
            let inside = ((at - self.call.request.range.start) % block_bytes) as usize;
            let length = (PIECE_BYTES - inside as u64).min(range.end - at) as usize;
            let mut buffer = vec![0; (inside + length).next_multiple_of(block_bytes as usize)];
            let (block, start) = (self.block_of(at), at - inside as u64);
            let count = match self.call.direction {
                CopyDirection::ToImporter => {
                    let count = self.file.read(start, &mut buffer[..inside + length]).map_err(CopyError::File)?;
                    // Where the file has become shorter, nothing is written.
                    let whole = count.next_multiple_of(block_bytes as usize);
                    if count > inside {
                        self.importer.engine.write(block, &buffer[..whole])?;
                    }
                    count.saturating_sub(inside)
                }
                CopyDirection::FromImporter => {
                    self.importer.engine.read(block, &mut buffer)?;
                    self.file.write(at, &buffer[inside..inside + length]).map_err(CopyError::File)?;
                    length
                }
            };
            self.moved.fallback[slot] += count as u64;
            at += length as u64;
            if count < length {
                // The end of the file.
                break;
            }
        }
        Ok(())
    }

    /// The importer's logical block of a file offset.
    fn block_of(&self, at: u64) -> u64 {
        self.call.first_block + (at - self.call.request.range.start) / self.importer.engine.block_bytes()
    }
}
