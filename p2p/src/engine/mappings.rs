//! The mapping table: a slab in shards. A handle carries the generation of its
//! slot's content, so a stale one is a failed look-up.

use std::sync::Arc;
use std::time::Duration;

use peerfs_abi::MapFlags;
use slab::Slab;

use super::context::Context;
use super::grant_set::GrantSet;
use super::user::Share;
use crate::moved::Moved;
use crate::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Mutex, lock};
use crate::types::{GrantId, MappingId, ObjectId, Range};

const SHARD_BITS: u32 = 4;
const SLOT_BITS: u32 = 28;
const SHARDS: usize = 1 << SHARD_BITS;

/// One mapping: what a client asked for, and the grants it got.
pub(super) struct Mapping {
    pub(super) id: MappingId,
    pub(super) context: Arc<Context>,
    pub(super) object: ObjectId,
    pub(super) flags: MapFlags,
    pub(super) segments: AtomicU32,
    /// Its place among the user's mappings.
    _place: Share,
    /// Nothing yet, for most of their lives.
    moved: Mutex<Option<Box<Moved>>>,
    created_ns: u64,
    state: Mutex<MappingState>,
}

struct MappingState {
    range: Range,
    grants: GrantSet,
}

impl Mapping {
    pub(super) fn new(
        id: MappingId,
        context: Arc<Context>,
        object: ObjectId,
        range: Range,
        flags: MapFlags,
        now: Duration,
        place: Share,
    ) -> Mapping {
        Mapping {
            id,
            context,
            object,
            flags,
            segments: AtomicU32::new(0),
            _place: place,
            moved: Mutex::default(),
            created_ns: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
            state: Mutex::new(MappingState { range, grants: GrantSet::default() }),
        }
    }

    /// When it was made.
    pub(super) fn created(&self) -> Duration {
        Duration::from_nanos(self.created_ns)
    }

    pub(super) fn range(&self) -> Range {
        lock(&self.state).range
    }

    pub(super) fn widen(&self, range: Range) {
        let mut state = lock(&self.state);
        state.range.start = state.range.start.min(range.start);
        state.range.end = state.range.end.max(range.end);
    }

    /// Adds what the client reports to have moved through it.
    pub(super) fn count(&self, moved: &Moved) {
        if !moved.is_nothing() {
            lock(&self.moved).get_or_insert_default().add(moved);
        }
    }

    /// What was moved through it.
    pub(super) fn moved(&self) -> Moved {
        lock(&self.moved).as_deref().cloned().unwrap_or_default()
    }

    /// True: it is the mapping's only one.
    pub(super) fn add_grant(&self, grant: GrantId) -> bool {
        lock(&self.state).grants.insert(grant)
    }

    /// True: the mapping has none left.
    pub(super) fn remove_grant(&self, grant: GrantId) -> bool {
        lock(&self.state).grants.remove(grant)
    }

    pub(super) fn grants(&self) -> Vec<GrantId> {
        lock(&self.state).grants.to_vec()
    }

    pub(super) fn grant_count(&self) -> u64 {
        lock(&self.state).grants.len() as u64
    }
}

pub(super) struct MappingTable {
    shards: [Mutex<Shard>; SHARDS],
    next_shard: AtomicU64,
    count: AtomicUsize,
}

#[derive(Default)]
struct Shard {
    slots: Slab<(u32, Arc<Mapping>)>,
    generation: u32,
}

impl MappingTable {
    pub(super) fn new() -> Self {
        MappingTable {
            shards: std::array::from_fn(|_| Mutex::default()),
            next_shard: AtomicU64::new(0),
            count: AtomicUsize::new(0),
        }
    }

    /// Mappings now.
    pub(super) fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// `None`: the table holds `limit` mappings.
    pub(super) fn insert(&self, limit: usize, make: impl FnOnce(MappingId) -> Mapping) -> Option<Arc<Mapping>> {
        if self.count.fetch_add(1, Ordering::Relaxed) >= limit {
            self.count.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        let index = self.next_shard.fetch_add(1, Ordering::Relaxed) % SHARDS as u64;
        let mut shard = lock(&self.shards[index as usize]);
        if shard.slots.len() >= 1 << SLOT_BITS {
            self.count.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        shard.generation = shard.generation.wrapping_add(1).max(1);
        let generation = shard.generation;
        let entry = shard.slots.vacant_entry();
        let slot = entry.key() as u64;
        let id = (u64::from(generation) << 32) | (slot << SHARD_BITS) | index;
        let mapping = Arc::new(make(MappingId(id)));
        entry.insert((generation, mapping.clone()));
        Some(mapping)
    }

    pub(super) fn get(&self, id: MappingId) -> Option<Arc<Mapping>> {
        let (shard, slot, generation) = self.locate(id);
        let shard = lock(shard);
        let (found, mapping) = shard.slots.get(slot)?;
        (*found == generation).then(|| mapping.clone())
    }

    pub(super) fn remove(&self, id: MappingId) -> Option<Arc<Mapping>> {
        let (shard, slot, generation) = self.locate(id);
        let mut shard = lock(shard);
        let (found, _) = shard.slots.get(slot)?;
        if *found != generation {
            return None;
        }
        self.count.fetch_sub(1, Ordering::Relaxed);
        Some(shard.slots.remove(slot).1)
    }

    /// At most `most` of them, in no order.
    pub(super) fn some(&self, most: usize) -> Vec<Arc<Mapping>> {
        let mut found = Vec::new();
        for shard in &self.shards {
            let shard = lock(shard);
            found.extend(shard.slots.iter().take(most - found.len()).map(|(_, slot)| slot.1.clone()));
        }
        found
    }

    fn locate(&self, id: MappingId) -> (&Mutex<Shard>, usize, u32) {
        let shard = id.0 as usize % SHARDS;
        let slot = (id.0 as u32 >> SHARD_BITS) as usize;
        (&self.shards[shard], slot, (id.0 >> 32) as u32)
    }
}
