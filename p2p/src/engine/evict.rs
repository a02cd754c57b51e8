//! Room in the aperture: the windows granted longest ago make way, where the
//! request is worth it.

use std::sync::Arc;

use peerfs_abi::Trigger;

use super::Engine;
use super::build::ChunkJob;
use super::object::{ChunkState, Object, ObjectState};
use super::order::ChunkKey;
use super::revoke::Batch;
use crate::sync::lock;

impl Engine {
    /// Revokes windows worth `needed_bytes`. False: the request is too large to push others out, or what is there is
    /// in use or belongs to the same mapping.
    pub(super) fn make_room(&self, job: &ChunkJob<'_>, needed_bytes: u64) -> bool {
        let export = self.export(job.request.object);
        let capacity = export.aperture_info().map_or(0, |info| info.capacity_bytes);
        if job.request.range.length() > capacity / 2 {
            return false;
        }
        let mut victims = Vec::new();
        let mut found_bytes = 0;
        for (key, bytes) in export.order.oldest_first() {
            if found_bytes >= needed_bytes {
                break;
            }
            if let Some(object) = self.idle_object(key, job) {
                found_bytes += bytes;
                victims.push((object, key));
            }
        }
        if found_bytes < needed_bytes {
            return false;
        }
        let mut batch = Batch::default();
        for (object, key) in victims {
            let mut state = lock(&object.state);
            if is_idle(self, &mut state, key, job) {
                self.seize(&object, &mut state, key.number, Trigger::AperturePressure, &mut batch);
            }
        }
        self.carry_out(batch, Trigger::AperturePressure);
        true
    }

    fn idle_object(&self, key: ChunkKey, job: &ChunkJob<'_>) -> Option<Arc<Object>> {
        let object = self.object_of(key.object)?;
        let idle = is_idle(self, &mut lock(&object.state), key, job);
        idle.then_some(object)
    }
}

fn is_idle(engine: &Engine, state: &mut ObjectState, key: ChunkKey, job: &ChunkJob<'_>) -> bool {
    let Some(chunk) = state.same(key.number, key.id) else {
        return false;
    };
    let ChunkState::Active(active) = &chunk.state else {
        return false;
    };
    let own = active.holders.iter().any(|holder| holder.grant.mapping().is_some_and(|m| m.id == job.mapping.id));
    let now = engine.clock.now();
    let recently = now.checked_sub(engine.config.evict_idle);
    // Nothing is idle before the clock has run for `evict_idle`.
    !own && recently.is_some_and(|moment| !active.used_after(moment))
}
