//! The mapping table: a slab in shards. A handle carries the generation of its
//! slot's content, so a stale one is a failed look-up.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use peerfs_abi::MapFlags;
use slab::Slab;

use super::context::Context;
use crate::sync::lock;
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
    pub(super) created: Duration,
    pub(super) segments: AtomicU64,
    pub(super) bytes_direct: AtomicU64,
    pub(super) bytes_fallback: AtomicU64,
    used_ns: AtomicU64,
    state: Mutex<MappingState>,
}

struct MappingState {
    range: Range,
    grants: HashSet<GrantId>,
}

impl Mapping {
    pub(super) fn new(
        id: MappingId,
        context: Arc<Context>,
        object: ObjectId,
        range: Range,
        flags: MapFlags,
        now: Duration,
    ) -> Mapping {
        let mapping = Mapping {
            id,
            context,
            object,
            flags,
            created: now,
            segments: AtomicU64::new(0),
            bytes_direct: AtomicU64::new(0),
            bytes_fallback: AtomicU64::new(0),
            used_ns: AtomicU64::new(0),
            state: Mutex::new(MappingState { range, grants: HashSet::new() }),
        };
        mapping.touch(now);
        mapping
    }

    /// When it was last granted something or reported on.
    pub(super) fn used(&self) -> Duration {
        Duration::from_nanos(self.used_ns.load(Ordering::Relaxed))
    }

    pub(super) fn touch(&self, now: Duration) {
        let ns = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        self.used_ns.fetch_max(ns, Ordering::Relaxed);
    }

    pub(super) fn range(&self) -> Range {
        lock(&self.state).range
    }

    pub(super) fn widen(&self, range: Range) {
        let mut state = lock(&self.state);
        state.range.start = state.range.start.min(range.start);
        state.range.end = state.range.end.max(range.end);
    }

    pub(super) fn add_grant(&self, grant: GrantId) {
        lock(&self.state).grants.insert(grant);
    }

    pub(super) fn remove_grant(&self, grant: GrantId) {
        lock(&self.state).grants.remove(&grant);
    }

    pub(super) fn grants(&self) -> Vec<GrantId> {
        lock(&self.state).grants.iter().copied().collect()
    }

    pub(super) fn grant_count(&self) -> u64 {
        lock(&self.state).grants.len() as u64
    }
}

pub(super) struct MappingTable {
    shards: [Mutex<Shard>; SHARDS],
    next_shard: AtomicU64,
}

#[derive(Default)]
struct Shard {
    slots: Slab<(u32, Arc<Mapping>)>,
    generation: u32,
}

impl MappingTable {
    pub(super) fn new() -> Self {
        MappingTable { shards: std::array::from_fn(|_| Mutex::default()), next_shard: AtomicU64::new(0) }
    }

    /// `None`: the table is full.
    pub(super) fn insert(&self, make: impl FnOnce(MappingId) -> Mapping) -> Option<Arc<Mapping>> {
        let index = self.next_shard.fetch_add(1, Ordering::Relaxed) % SHARDS as u64;
        let mut shard = lock(&self.shards[index as usize]);
        if shard.slots.len() >= 1 << SLOT_BITS {
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
        (*found == generation).then(|| shard.slots.remove(slot).1)
    }

    pub(super) fn all(&self) -> Vec<Arc<Mapping>> {
        let of_shard =
            |shard: &Mutex<Shard>| -> Vec<Arc<Mapping>> { lock(shard).slots.iter().map(|(_, slot)| slot.1.clone()).collect() };
        self.shards.iter().flat_map(of_shard).collect()
    }

    fn locate(&self, id: MappingId) -> (&Mutex<Shard>, usize, u32) {
        let shard = id.0 as usize % SHARDS;
        let slot = (id.0 as u32 >> SHARD_BITS) as usize;
        (&self.shards[shard], slot, (id.0 >> 32) as u32)
    }
}
