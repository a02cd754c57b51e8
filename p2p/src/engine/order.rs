//! Two indexes over live windows: order of use, for eviction; and the reverse
//! map from device blocks to chunks, for events of the device. The second is the
//! one helper that every kind of block device shares.

use std::collections::BTreeMap;
use std::sync::Mutex;

use peerfs_blockdev::Run;

use crate::sync::lock;
use crate::types::{ObjectId, Range};

/// Names a chunk exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ChunkKey {
    pub(super) object: ObjectId,
    pub(super) number: u64,
    pub(super) id: u64,
}

/// Windows, least recently granted first.
#[derive(Default)]
pub(super) struct UseOrder(Mutex<Ticks>);

#[derive(Default)]
struct Ticks {
    next: u64,
    windows: BTreeMap<u64, (ChunkKey, u64)>,
}

impl UseOrder {
    /// Puts a window at the young end. Returns its tick.
    pub(super) fn insert(&self, key: ChunkKey, bytes: u64) -> u64 {
        let mut ticks = lock(&self.0);
        ticks.next += 1;
        let tick = ticks.next;
        ticks.windows.insert(tick, (key, bytes));
        tick
    }

    /// Moves a window to the young end. Returns its new tick.
    pub(super) fn touch(&self, tick: u64) -> u64 {
        let mut ticks = lock(&self.0);
        let Some(window) = ticks.windows.remove(&tick) else {
            return tick;
        };
        ticks.next += 1;
        let tick = ticks.next;
        ticks.windows.insert(tick, window);
        tick
    }

    pub(super) fn remove(&self, tick: u64) {
        lock(&self.0).windows.remove(&tick);
    }

    pub(super) fn len(&self) -> u64 {
        lock(&self.0).windows.len() as u64
    }

    /// Oldest first, with their sizes in bytes.
    pub(super) fn oldest_first(&self) -> Vec<(ChunkKey, u64)> {
        lock(&self.0).windows.values().copied().collect()
    }
}

/// Device blocks in windows. A block is in at most one.
#[derive(Default)]
pub(super) struct ReverseMap(Mutex<BTreeMap<u64, (u64, ChunkKey)>>);

impl ReverseMap {
    pub(super) fn insert(&self, runs: &[Run], key: ChunkKey) {
        let mut blocks = lock(&self.0);
        for run in runs {
            blocks.insert(run.device_offset, (run.length, key));
        }
    }

    pub(super) fn remove(&self, runs: &[Run], id: u64) {
        let mut blocks = lock(&self.0);
        for run in runs {
            if blocks.get(&run.device_offset).is_some_and(|b| b.1.id == id) {
                blocks.remove(&run.device_offset);
            }
        }
    }

    /// Chunks with blocks in a range of the device.
    pub(super) fn affected(&self, range: Range) -> Vec<ChunkKey> {
        let blocks = lock(&self.0);
        let first = blocks.range(..=range.start).next_back().map_or(range.start, |(start, _)| *start);
        let mut keys: Vec<ChunkKey> = blocks
            .range(first..range.end.max(first))
            .filter(|(start, (length, _))| Range::new(**start, *length).overlaps(range))
            .map(|(_, (_, key))| *key)
            .collect();
        keys.sort_unstable_by_key(|key| key.id);
        keys.dedup();
        keys
    }
}
