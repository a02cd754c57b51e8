//! The importer inside the server: this processor, reaching windows through the aperture as a device would.
//!
//! It is there for memory that no process can be given: through it a BAR can be read by anybody who may read the file,
//! and decisions, revocation and attestation are those of every other importer. A window's own gate makes its copies
//! end before the cut, so a revocation is acknowledged at once.

use std::sync::Arc;

use peerfs_abi::ImporterFlags;
use peerfs_abi::names::SERVER_IMPORTER;

use crate::api::{MapError, MapSegment};
use crate::engine::Engine;
use crate::inside::{InsideError, InsideSession, REVOKED, attest};
use crate::moved::Moved;
use crate::types::{Importer, MapRequest, Range};

/// Bytes copied at a time: what a cut waits for at most.
const PIECE_BYTES: u64 = 128 << 10;

/// Why a range could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ServerReadError<E> {
    /// The mapping.
    #[error(transparent)]
    Map(#[from] MapError),
    /// No session was opened: it counts as one of the user's.
    #[error("the importer in the server: {0}")]
    Session(#[from] InsideError),
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
    // Nothing has to stop: the windows themselves see to it.
    let session = InsideSession::open(engine, request.uid, server_importer(), |_| true)?;
    let mut moved = Moved::default();
    let mut mapping = None;
    let mut range = request.range;
    while !range.is_empty() {
        let answer = session.map(&MapRequest { range, ..request.clone() }, mapping)?;
        mapping = answer.mapping.or(mapping);
        for segment in &answer.segments {
            read(&session, segment, &mut fallback, &mut take, &mut moved).map_err(ServerReadError::Fallback)?;
        }
        range = Range { start: answer.next_offset, end: answer.end_offset };
    }
    if let Some(mapping) = mapping {
        session.unmap(mapping, &moved)?;
    }
    Ok(moved)
}

fn read<E>(
    session: &InsideSession<'_>,
    segment: &MapSegment,
    fallback: &mut impl FnMut(u64, &mut [u8]) -> Result<usize, E>,
    take: &mut impl FnMut(&[u8]),
    moved: &mut Moved,
) -> Result<(), E> {
    let window = segment.access.and_then(|part| Ok((part, session.window(part.id)?)));
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
