//! Room in the aperture: the windows granted longest ago make way, where the
//! request is worth it.

use std::collections::HashSet;
use std::sync::Arc;

use peerfs_abi::Trigger;

use super::Engine;
use super::build::ChunkJob;
use super::object::{ChunkState, Object, ObjectState};
use super::order::ChunkKey;
use super::plan::chunk_range;
use super::revoke::Batch;
use crate::sync::lock;
use crate::types::{GrantId, ObjectId, Range};
use peerfs_blockdev::ApertureInfo;

/// Windows looked at in one go.
const PORTION: usize = 64;
/// Portions that a query looks at.
const PORTIONS_MAX: usize = 64;

impl Engine {
    /// Revokes windows worth `needed_bytes`. False: the request is too large to push others out, or what is there is
    /// in use or belongs to the same mapping.
    pub(super) fn make_room(&self, job: &ChunkJob<'_>, needed_bytes: u64) -> bool {
        let export = self.export(job.request.object);
        let capacity = export.aperture_info().map_or(0, |info| info.capacity_bytes);
        if job.request.range.length() > capacity / 2 {
            return false;
        }
        let own = self.windows_of(job);
        let mut victims = Vec::new();
        let (mut found_bytes, mut after) = (0, 0);
        while found_bytes < needed_bytes {
            let portion = export.order.oldest(after, PORTION);
            let Some(last) = portion.last() else { return false };
            after = last.tick;
            for used in portion {
                if found_bytes >= needed_bytes {
                    break;
                }
                if let Some(object) = self.idle_object(used.key, &own) {
                    found_bytes += used.bytes;
                    victims.push((object, used.key));
                }
            }
        }
        let mut batch = Batch::new(&*self.clock);
        for (object, key) in victims {
            let mut state = lock(&object.state);
            if is_idle(self, &mut state, key, &own) {
                self.seize(&object, &mut state, key.number, Trigger::AperturePressure, &mut batch);
            }
        }
        self.carry_out(batch, Trigger::AperturePressure);
        true
    }

    /// What a map of the range would find room for, bytes: free space, what makes way for it, what is mapped of it.
    pub(super) fn room_for(&self, object: ObjectId, range: Range, info: &ApertureInfo) -> u64 {
        let held = self.object_of(object).map_or(0, |object| lock(&object.state).held_bytes(range));
        let room = info.capacity_bytes.saturating_sub(info.used_bytes).saturating_add(held);
        if room >= range.length() || range.length() > info.capacity_bytes / 2 {
            return room;
        }
        room + self.idle_bytes(object, range, range.length() - room)
    }

    /// Bytes of windows that would make way, until there are enough.
    fn idle_bytes(&self, object: ObjectId, range: Range, enough: u64) -> u64 {
        let nothing = HashSet::new();
        let (mut found_bytes, mut after) = (0, 0);
        for _ in 0..PORTIONS_MAX {
            let portion = self.export(object).order.oldest(after, PORTION);
            let Some(last) = portion.last().filter(|_| found_bytes < enough) else { break };
            after = last.tick;
            let foreign =
                portion.iter().filter(|used| used.key.object != object || !chunk_range(used.key.number).overlaps(range));
            let idle = foreign.filter(|used| self.idle_object(used.key, &nothing).is_some());
            found_bytes += idle.map(|used| used.bytes).sum::<u64>();
        }
        found_bytes
    }

    /// Ids of the chunks that the mapping holds already.
    fn windows_of(&self, job: &ChunkJob<'_>) -> HashSet<u64> {
        let id = |grant: GrantId| self.grant_of(grant)?.data().map(|data| data.lent.id);
        job.mapping.grants().into_iter().filter_map(id).collect()
    }

    fn idle_object(&self, key: ChunkKey, own: &HashSet<u64>) -> Option<Arc<Object>> {
        let object = self.object_of(key.object)?;
        let idle = is_idle(self, &mut lock(&object.state), key, own);
        idle.then_some(object)
    }
}

fn is_idle(engine: &Engine, state: &mut ObjectState, key: ChunkKey, own: &HashSet<u64>) -> bool {
    let Some(chunk) = state.same(key.number, key.id) else {
        return false;
    };
    let ChunkState::Active(active) = &chunk.state else {
        return false;
    };
    let now = engine.clock.now();
    let recently = now.checked_sub(engine.config.evict_idle);
    // Nothing is idle before the clock has run for `evict_idle`.
    !own.contains(&key.id) && recently.is_some_and(|moment| !active.lent.used_after(moment))
}
