//! The pins of one object, as its state knows them.

use std::sync::Arc;

use super::Pin;
use crate::types::Range;

/// Pins of one object, live or on their way.
#[derive(Default)]
pub(in crate::engine) struct ObjectPins {
    pub(super) pending: Vec<PendingPin>,
    pub(super) live: Vec<Arc<Pin>>,
}

/// A pin under way. The range is closed to other maps meanwhile.
pub(super) struct PendingPin {
    pub(super) id: u64,
    pub(super) cover: Range,
    pub(super) write: bool,
    pub(super) phase: PendingPhase,
    /// A size that was set since the blocks were looked up.
    pub(super) new_size: Option<u64>,
}

/// As for a chunk: only one that opens its window depends on blocks, and does nothing but device I/O.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PendingPhase {
    Quiescing { aborted: bool },
    Opening { aborted: bool },
}

impl ObjectPins {
    pub(in crate::engine) fn is_empty(&self) -> bool {
        self.pending.is_empty() && self.live.is_empty()
    }

    /// Parts of the object that are pinned.
    pub(in crate::engine) fn pinned(&self, range: Range) -> Vec<Range> {
        let concerned = self.live.iter().filter(|pin| pin.range.overlaps(range));
        concerned.flat_map(|pin| pin.attached()).filter(|part| part.overlaps(range)).collect()
    }

    /// Pins on their way to the range have to start again: its blocks are about to change.
    pub(in crate::engine) fn abort(&mut self, range: Range) {
        for pending in self.pending.iter_mut().filter(|pending| pending.cover.overlaps(range)) {
            pending.phase = match pending.phase {
                PendingPhase::Quiescing { .. } => PendingPhase::Quiescing { aborted: true },
                PendingPhase::Opening { .. } => PendingPhase::Opening { aborted: true },
            };
        }
    }

    /// A pin to the range still depends on its blocks.
    pub(in crate::engine) fn is_opening(&self, range: Range) -> bool {
        let opening = |pending: &PendingPin| matches!(pending.phase, PendingPhase::Opening { .. });
        self.pending.iter().any(|pending| opening(pending) && pending.cover.overlaps(range))
    }

    pub(super) fn pending(&mut self, id: u64) -> Option<&mut PendingPin> {
        self.pending.iter_mut().find(|pending| pending.id == id)
    }

    /// No handle of the page cache may be opened beside these pins.
    pub(super) fn forbids_cached(&self, write: bool) -> bool {
        let forbids = |pins_write: bool| pins_write || write;
        self.pending.iter().any(|pending| forbids(pending.write)) || self.live.iter().any(|pin| forbids(pin.writable))
    }
}
