//! What the CPU does to mapped objects (the table of the design's section on coherence).

use std::sync::atomic::Ordering;

use peerfs_abi::Trigger;

use super::Engine;
use super::object::{ChunkState, Phase};
use super::revoke::Batch;
use crate::api::CpuAccess;
use crate::sync::lock;
use crate::types::{ObjectId, Range};

impl Engine {
    /// Before a READ on a cached handle is answered, or a WRITE from the page cache carried out. A map under way is
    /// spoiled and never waited for; a live mapping that may not coexist is revoked first.
    pub fn cpu_access(&self, object: ObjectId, range: Range, access: CpuAccess) {
        if !self.is_mapped(None) {
            return;
        }
        let Some(object) = self.object_of(object) else {
            return;
        };
        let shares_reads = access == CpuAccess::CachedRead { cpu_writers: 0 };
        let mut batch = Batch::new(&*self.clock);
        {
            let mut state = lock(&object.state);
            for number in state.overlapping(range) {
                let Some(chunk) = state.chunks.get_mut(&number) else {
                    continue;
                };
                match &mut chunk.state {
                    ChunkState::Pending(pending) => {
                        pending.spoiled |= pending.write || !shares_reads;
                    }
                    // Also while it is being taken back: a reader does not wait for an importer that only reads.
                    ChunkState::Active(active) | ChunkState::Revoking(active) if shares_reads && !active.writable => {}
                    ChunkState::Active(_) | ChunkState::Revoking(_) => {
                        self.seize(&object, &mut state, number, Trigger::CpuAccess, &mut batch);
                    }
                }
            }
        }
        self.carry_out(batch, Trigger::CpuAccess);
    }

    /// Before the first writable cached handle of the object is opened. The handle must count in `cpu_writers` of
    /// [`CpuAccess::CachedRead`] before this call: from then on pages are not cached again beside a mapping.
    pub fn writable_cached_open(&self, object: ObjectId) {
        if !self.is_mapped(None) {
            return;
        }
        let Some(found) = self.object_of(object) else {
            return;
        };
        let mut readable = Vec::new();
        for chunk in lock(&found.state).chunks.values_mut() {
            match &mut chunk.state {
                ChunkState::Pending(pending) => pending.spoiled = true,
                // Also while it is being taken back: the importer has its memory until the cut.
                ChunkState::Active(active) | ChunkState::Revoking(active) if !active.writable => readable.push(active.range),
                ChunkState::Active(_) | ChunkState::Revoking(_) => {}
            }
        }
        // No proof by cachestat(2): there is no descriptor to look through. The pages are clean, since nobody could write
        // them through the cache until now, and clean pages always go.
        for range in readable {
            let quiet = match self.exporter(object) {
                Ok(exporter) => exporter.quiesce(object, range, None).is_ok(),
                Err(_) => false,
            };
            if !quiet {
                self.revoke(Some(object), range, Trigger::CpuAccess);
            }
        }
    }

    /// The size changed. Before shortening, the range beyond the new end is closed ([`Engine::close_range`]); when
    /// growing, this comes before bytes beyond the old end can be read.
    pub fn size_changed(&self, object: ObjectId, _old_size: u64, new_size: u64) {
        if !self.is_mapped(None) {
            return;
        }
        let Some(object) = self.object_of(object) else {
            return;
        };
        // Under the lock, so that a window becoming live sees either the recorded size or this call.
        let mut state = lock(&object.state);
        state.resize_pins(new_size);
        for chunk in state.chunks.values_mut() {
            match &mut chunk.state {
                ChunkState::Pending(pending) if pending.phase == Phase::Quiescing => {}
                ChunkState::Pending(pending) => pending.new_size = Some(new_size),
                ChunkState::Active(active) | ChunkState::Revoking(active) => {
                    active.apply_size(new_size);
                }
            }
        }
    }

    /// A mapping of the object (`None`: of any) exists, or is being made or revoked. Costs one load while there is none.
    pub fn is_mapped(&self, object: Option<ObjectId>) -> bool {
        if self.live_chunks.load(Ordering::SeqCst) == 0 {
            return false;
        }
        match object {
            None => true,
            Some(id) => self.object_of(id).is_some_and(|object| {
                let state = lock(&object.state);
                !state.chunks.is_empty() || !state.pins.is_empty()
            }),
        }
    }
}
