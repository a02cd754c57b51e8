//! The engine's view of one object: its chunks, and the ranges closed at present.

use std::collections::BTreeMap;
use std::sync::Arc;

use peerfs_blockdev::Window;

use super::grant::Lent;
use super::holders::Holders;
use super::pins::ObjectPins;
use crate::api::CHUNK_BYTES;
use crate::clock::Gate;
use crate::sync::Mutex;
use crate::types::{ObjectId, Range};

/// An object with live chunks or closed ranges. `gate` is notified at each change of the state.
pub(super) struct Object {
    pub(super) id: ObjectId,
    pub(super) state: Mutex<ObjectState>,
    pub(super) gate: Arc<Gate>,
}

#[derive(Default)]
pub(super) struct ObjectState {
    pub(super) chunks: BTreeMap<u64, Chunk>,
    /// (number of the closer, range).
    pub(super) closed: Vec<(u64, Range)>,
    pub(super) pins: ObjectPins,
    /// Taken out of the table: look the object up again.
    pub(super) dead: bool,
}

/// A chunk that is mapped, or on its way there or back. `id` is never reused, so it also tells whether a chunk is
/// still the one that was looked at before a lock was released.
pub(super) struct Chunk {
    pub(super) id: u64,
    pub(super) state: ChunkState,
}

pub(super) enum ChunkState {
    Pending(Pending),
    Active(Active),
    /// A revoker owns it; the holders may acknowledge.
    Revoking(Active),
}

/// A map under way.
pub(super) struct Pending {
    /// Blocks it is going to cover.
    pub(super) range: Range,
    pub(super) write: bool,
    pub(super) phase: Phase,
    /// The CPU touched the range: what was proved of the page cache no longer holds.
    pub(super) spoiled: bool,
    /// A size that was set since the blocks were looked up.
    pub(super) new_size: Option<u64>,
}

/// A map that is `Quiescing` depends on no block: whoever closes the range removes it and goes on. (It may be waiting
/// for the very request that wants to close the range.) One that is `Opening` does device I/O only, so the closer waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Quiescing,
    Opening { aborted: bool },
}

pub(super) struct Active {
    pub(super) window: Arc<dyn Window>,
    pub(super) lent: Arc<Lent>,
    /// From the first byte of the window to its last.
    pub(super) range: Range,
    /// Stretches of the object that the window holds, whole blocks, sorted.
    pub(super) parts: Vec<Range>,
    /// Where the object ends, as the window knows.
    pub(super) size: u64,
    /// Some holder may write, or could once.
    pub(super) writable: bool,
    pub(super) holders: Holders,
    /// Place in the order of use.
    pub(super) tick: u64,
}

impl Object {
    pub(super) fn new(id: ObjectId) -> Arc<Object> {
        Arc::new(Object { id, state: Mutex::default(), gate: Arc::default() })
    }
}

impl ObjectState {
    pub(super) fn is_empty(&self) -> bool {
        self.chunks.is_empty() && self.closed.is_empty() && self.pins.is_empty()
    }

    /// Numbers of the chunks that cover bytes of the range.
    pub(super) fn overlapping(&self, range: Range) -> Vec<u64> {
        if range.is_empty() {
            return Vec::new();
        }
        self.chunks
            .range(range.start / CHUNK_BYTES..=(range.end - 1) / CHUNK_BYTES)
            .filter(|(_, chunk)| chunk.touches(range))
            .map(|(number, _)| *number)
            .collect()
    }

    /// Bytes of the range that are in live windows.
    pub(super) fn held_bytes(&self, range: Range) -> u64 {
        let live = self.overlapping(range).into_iter().filter_map(|number| match &self.chunks.get(&number)?.state {
            ChunkState::Active(active) => Some(active),
            ChunkState::Pending(_) | ChunkState::Revoking(_) => None,
        });
        let common = |part: &Range| if part.overlaps(range) { part.intersect(range).length() } else { 0 };
        live.flat_map(|active| active.parts.iter().map(common)).sum()
    }

    pub(super) fn is_closed(&self, range: Range) -> bool {
        self.closed.iter().any(|(_, closed)| closed.overlaps(range))
    }

    /// The chunk, if it is still the one with this id.
    pub(super) fn same(&mut self, number: u64, id: u64) -> Option<&mut Chunk> {
        self.chunks.get_mut(&number).filter(|chunk| chunk.id == id)
    }
}

impl Chunk {
    /// It holds blocks with bytes of the range, or is going to.
    fn touches(&self, range: Range) -> bool {
        match &self.state {
            ChunkState::Pending(pending) => pending.range.overlaps(range),
            ChunkState::Active(active) | ChunkState::Revoking(active) => active.parts.iter().any(|part| part.overlaps(range)),
        }
    }
}

impl Active {
    pub(super) fn covers(&self, needed: &[Range]) -> bool {
        needed.iter().all(|need| self.parts.iter().any(|p| p.start <= need.start && need.end <= p.end))
    }

    /// Where the object ends inside the window.
    pub(super) fn apply_size(&mut self, size: u64) {
        self.size = size;
        self.window.set_valid_length(valid_length(self.range, size));
    }
}

/// How many bytes of a window lie before the end of the object.
pub(super) fn valid_length(window: Range, size: u64) -> u64 {
    size.saturating_sub(window.start).min(window.length())
}
