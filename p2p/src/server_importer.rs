//! The importer inside the server: this processor, reaching windows through the aperture as a device would.
//!
//! It is there for memory that no process can be given: through it a BAR can be read by anybody who may read the file,
//! and decisions, revocation and attestation are those of every other importer. A window's own gate makes its copies
//! end before the cut, so a revocation is acknowledged at once.

use std::sync::{Arc, OnceLock, Weak};

use peerfs_abi::names::SERVER_IMPORTER;
use peerfs_abi::{ImporterFlags, Reason};
use peerfs_blockdev::{PathKind, Window};

use crate::api::{BindError, Client, DeviceMapOps, GrantPart, MapCall, MapError, MapSegment, SessionError, SessionId, UnmapCall};
use crate::engine::Engine;
use crate::moved::Moved;
use crate::types::{ContextId, GrantId, Importer, MapRequest, MappingId, Range};

/// Bytes copied at a time: what a cut waits for at most.
const PIECE_BYTES: u64 = 128 << 10;

/// Segments asked for at a time.
const SEGMENTS: usize = 64;

/// Place of bytes that were direct when they were mapped, and revoked before they were read.
const REVOKED: usize = 0;

/// Why a range could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ServerReadError<E> {
    /// The mapping.
    #[error(transparent)]
    Map(#[from] MapError),
    /// No session was opened: it counts as one of the user's.
    #[error("the importer in the server: {0}")]
    Session(#[from] SessionError),
    /// No context was made.
    #[error("the importer in the server: {0}")]
    Context(#[from] BindError),
    /// Reading by fallback.
    #[error("{0}")]
    Fallback(E),
}

/// The importer as a query sees it.
pub fn server_importer() -> Importer {
    Importer {
        name: SERVER_IMPORTER.into(),
        flags: ImporterFlags::all(),
        dma_bits: 64,
        va_bits: 48,
        page_bytes: 4096,
        pci_address: None,
        in_client: false,
    }
}

/// Maps the range of a request and reads it once, in order: directly where that is decided, else with `fallback`, which
/// fills a buffer from a file offset and says how much there was. `take` gets the bytes.
///
/// # Errors
/// The object cannot be mapped at all, or the fallback failed.
pub fn read_through_server<E>(
    engine: &Arc<Engine>,
    request: &MapRequest,
    mut fallback: impl FnMut(u64, &mut [u8]) -> Result<usize, E>,
    mut take: impl FnMut(&[u8]),
) -> Result<Moved, ServerReadError<E>> {
    let session = Session::open(engine, request.uid)?;
    let mut moved = Moved::default();
    let mut mapping = None;
    let mut range = request.range;
    while !range.is_empty() {
        let request = MapRequest { range, ..request.clone() };
        let call =
            MapCall { context: session.context, client: session.client, request: &request, mapping, segments_max: SEGMENTS };
        let answer = engine.device_map(&call)?;
        mapping = answer.mapping.or(mapping);
        for segment in &answer.segments {
            session.read(segment, &mut fallback, &mut take, &mut moved).map_err(ServerReadError::Fallback)?;
        }
        range = Range { start: answer.next_offset, end: answer.end_offset };
    }
    if let Some(mapping) = mapping {
        session.unmap(mapping, &moved)?;
    }
    Ok(moved)
}

/// A session of the server with itself, which counts as the user's for whom it reads. Closed when dropped.
struct Session<'a> {
    engine: &'a Arc<Engine>,
    id: SessionId,
    context: ContextId,
    client: Client,
}

impl<'a> Session<'a> {
    fn open<E>(engine: &'a Arc<Engine>, uid: u32) -> Result<Self, ServerReadError<E>> {
        let client = Client { tgid: std::process::id(), uid };
        let own: Arc<OnceLock<(Weak<Engine>, SessionId)>> = Arc::default();
        let told = own.clone();
        let wake = Arc::new(move || {
            let own = told.get().and_then(|(engine, id)| Some((engine.upgrade()?, *id)));
            if let Some((engine, id)) = own {
                acknowledge(&engine, id);
            }
        });
        let id = engine.open_session(client.uid, wake)?;
        let _first = own.set((Arc::downgrade(engine), id));
        let bound = engine.bind_context(id, server_importer(), client, None).inspect_err(|_| engine.close_session(id))?;
        Ok(Session { engine, id, context: bound.id, client })
    }

    fn read<E>(
        &self,
        segment: &MapSegment,
        fallback: &mut impl FnMut(u64, &mut [u8]) -> Result<usize, E>,
        take: &mut impl FnMut(&[u8]),
        moved: &mut Moved,
    ) -> Result<(), E> {
        let window = segment.access.and_then(|part| Ok((part, self.window(part.id)?)));
        let mut buffer = vec![0; PIECE_BYTES.min(segment.range.length()) as usize];
        for at in (0..segment.range.length()).step_by(PIECE_BYTES as usize) {
            let piece = &mut buffer[..PIECE_BYTES.min(segment.range.length() - at) as usize];
            let slot = match &window {
                Ok((part, window)) if window.peer_read(part.offset + at, piece).is_ok() => {
                    attest(moved, part, piece.len() as u64);
                    take(piece);
                    continue;
                }
                Ok(_) => REVOKED,
                Err(reason) => reason.slot(),
            };
            let count = fallback(segment.range.start + at, piece)?;
            moved.fallback[slot] += count as u64;
            take(&piece[..count]);
        }
        Ok(())
    }

    fn window(&self, grant: GrantId) -> Result<Arc<dyn Window>, Reason> {
        self.engine.lend_window(grant, self.client).ok_or(Reason::Busy)
    }

    fn unmap(&self, mapping: MappingId, moved: &Moved) -> Result<(), MapError> {
        let call = UnmapCall { session: self.id, client: self.client, mapping, report_only: false, moved: moved.clone() };
        self.engine.device_unmap(&call)
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        self.engine.close_session(self.id);
    }
}

fn attest(moved: &mut Moved, part: &GrantPart, bytes: u64) {
    match part.path {
        PathKind::DirectBar => moved.direct_bar += bytes,
        PathKind::DirectWindow => moved.direct_window += bytes,
    }
}

/// Nothing has to stop: the windows themselves see to it.
fn acknowledge(engine: &Engine, session: SessionId) {
    loop {
        let events = engine.events(session, SEGMENTS);
        if events.is_empty() {
            return;
        }
        for event in events {
            engine.ack(session, GrantId(event.grant_id));
        }
    }
}
