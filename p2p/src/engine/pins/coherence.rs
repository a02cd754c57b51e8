//! Pins and the CPU, and blocks that an object gives up under a pin.

use std::sync::atomic::Ordering;

use peerfs_blockdev::DeviceError;

use super::object::PendingPhase;
use crate::engine::Engine;
use crate::engine::object::{Object, ObjectState, valid_length};
use crate::sync::lock;
use crate::types::{ObjectId, Range};

impl Engine {
    /// A handle of the object that is being opened must keep the page cache out of the way. The handle must count in
    /// [`crate::PinSurvey`] before this call, and counts no longer where the answer is yes.
    pub fn must_open_direct(&self, object: ObjectId, write: bool) -> bool {
        if self.live_chunks.load(Ordering::SeqCst) == 0 {
            return false;
        }
        self.object_of(object).is_some_and(|object| lock(&object.state).pins.forbids_cached(write))
    }

    /// Of device ranges that the object is about to give up, those that a pin reaches: from now on they are the pin's
    /// alone, and [`crate::Exporter::release_blocks`] tells when it has ended. Waits for nothing.
    pub fn orphan_pinned(&self, object: ObjectId, freed: &[Range]) -> Vec<Range> {
        if self.live_chunks.load(Ordering::SeqCst) == 0 || freed.is_empty() {
            return Vec::new();
        }
        let Some(object) = self.object_of(object) else {
            return Vec::new();
        };
        // Under the object's lock: a pin that ends takes what it owes under the same.
        let state = lock(&object.state);
        state.pins.live.iter().flat_map(|pin| pin.orphan(freed)).collect()
    }

    /// A pin of the object lives: its blocks must stay where they are. Certain while the object is closed.
    pub fn is_pinned(&self, object: ObjectId) -> bool {
        self.object_of(object).is_some_and(|object| !lock(&object.state).pins.live.is_empty())
    }

    /// Waits until no pin on its way depends on blocks of the range. They were aborted before.
    pub(in crate::engine) fn await_pins(&self, object: &Object, range: Range) {
        self.clock.wait(&object.gate, None, &mut || !lock(&object.state).pins.is_opening(range));
    }

    /// Copies what importers stored through pins to the device.
    pub(in crate::engine) fn flush_pins(&self, object: &Object) -> Result<(), DeviceError> {
        let live = lock(&object.state).pins.live.clone();
        let mut result = Ok(());
        for pin in live.iter().filter(|pin| pin.writable) {
            result = result.and(pin.window.flush());
        }
        result
    }
}

impl ObjectState {
    /// The object's end moved. What lies beyond it and was given up keeps what it holds.
    pub(in crate::engine) fn resize_pins(&mut self, size: u64) {
        for pending in &mut self.pins.pending {
            if matches!(pending.phase, PendingPhase::Opening { .. }) {
                pending.new_size = Some(size);
            }
        }
        for pin in &self.pins.live {
            pin.window.set_valid_length(valid_length(pin.range, size));
        }
    }
}
