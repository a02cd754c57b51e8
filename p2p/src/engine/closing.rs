//! Ranges kept closed while their blocks change, and revocation by hand.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use peerfs_abi::Trigger;
use peerfs_blockdev::DeviceError;

use super::Engine;
use super::object::{Chunk, ChunkState, Object};
use super::revoke::Batch;
use crate::api::RevokeReport;
use crate::sync::lock;
use crate::types::{ObjectId, Range};

/// Keeps a range closed to new maps until it is dropped.
pub struct ClosedRange {
    engine: Arc<Engine>,
    object: Arc<Object>,
    number: u64,
    report: RevokeReport,
}

impl ClosedRange {
    /// What closing it took.
    pub fn report(&self) -> RevokeReport {
        self.report
    }
}

impl fmt::Debug for ClosedRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClosedRange(object {})", self.object.id.0)
    }
}

impl Drop for ClosedRange {
    fn drop(&mut self) {
        lock(&self.object.state).closed.retain(|(number, _)| *number != self.number);
        self.object.gate.notify();
        self.engine.retire(&self.object);
    }
}

impl Engine {
    /// Ends direct mappings of the range, the caller's own included, and keeps it closed: before its blocks are
    /// freed, moved or zeroed in place. It must not be left out because [`Engine::is_mapped`] says no: a map may
    /// begin at any moment. Waits until the deadline at most, and for device I/O.
    pub fn close_range(self: &Arc<Self>, object: ObjectId, range: Range, trigger: Trigger) -> ClosedRange {
        self.close(object, range, trigger, |_| true)
    }

    fn close(
        self: &Arc<Self>,
        object: ObjectId,
        range: Range,
        trigger: Trigger,
        concerned: impl Fn(&Chunk) -> bool,
    ) -> ClosedRange {
        let number = self.new_number();
        let mut batch = Batch::new(&*self.clock);
        let object = self.with_object(object, |object, state| {
            state.closed.push((number, range));
            state.pins.abort(range);
            for chunk in state.overlapping(range) {
                if state.chunks.get(&chunk).is_some_and(&concerned) {
                    self.seize(object, state, chunk, trigger, &mut batch);
                }
            }
            object.clone()
        });
        let report = self.carry_out(batch, trigger);
        self.await_pins(&object, range);
        ClosedRange { engine: self.clone(), object, number, report }
    }

    /// Ends mappings that may write the range and keeps it closed to new ones: before blocks are read, changed in part
    /// and written back, which would lose what a peer stores in between. A map under way starts again: it may have
    /// looked at a size that is about to change.
    pub fn close_to_writes(self: &Arc<Self>, object: ObjectId, range: Range) -> ClosedRange {
        self.close(object, range, Trigger::CpuAccess, |chunk| match &chunk.state {
            ChunkState::Pending(_) => true,
            ChunkState::Active(active) | ChunkState::Revoking(active) => active.writable,
        })
    }

    /// Ends mappings that may write the range and keeps it closed to new ones: before its blocks get a second owner, who
    /// must not see a peer's later stores. `None`: a pin reaches them, which cannot be ended, and would be left behind
    /// when one of the owners is given a copy.
    pub fn close_before_sharing(self: &Arc<Self>, object: ObjectId, range: Range) -> Option<ClosedRange> {
        let closed = self.close(object, range, Trigger::Reflink, |chunk| match &chunk.state {
            ChunkState::Pending(_) => true,
            ChunkState::Active(active) | ChunkState::Revoking(active) => active.writable,
        });
        let pinned = !lock(&closed.object.state).pins.pinned(range).is_empty();
        (!pinned).then_some(closed)
    }

    /// Revokes a range of one object, or (`None`) every mapping; the ranges stay open.
    pub fn revoke(&self, object: Option<ObjectId>, range: Range, trigger: Trigger) -> RevokeReport {
        let objects = match object {
            Some(id) => self.object_of(id).into_iter().collect(),
            None => self.all_objects(),
        };
        let range = match object {
            Some(_) => range,
            None => Range::ALL,
        };
        self.revoke_objects(objects, range, trigger)
    }

    pub(super) fn revoke_objects(&self, objects: Vec<Arc<Object>>, range: Range, trigger: Trigger) -> RevokeReport {
        let mut batch = Batch::new(&*self.clock);
        for object in &objects {
            let mut state = lock(&object.state);
            self.seize_range(object, &mut state, range, trigger, &mut batch);
        }
        self.carry_out(batch, trigger)
    }

    /// Before the volume is closed: refuses new maps for good, revokes everything and writes everything back.
    ///
    /// # Errors
    /// The device would not take what peers wrote; the call may be repeated.
    pub fn shut_down(&self) -> Result<(), DeviceError> {
        self.shutting_down.store(true, Ordering::SeqCst);
        self.revoke(None, Range::ALL, Trigger::Unmount);
        // Pins on their way: from here on none of them can become live, so the next line meets all there are.
        for object in self.all_objects() {
            lock(&object.state).pins.abort(Range::ALL);
            self.await_pins(&object, Range::ALL);
        }
        self.revoke_pins(None, Range::ALL, Trigger::Unmount);
        self.retry_held()
    }
}
