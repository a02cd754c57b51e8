//! Two indexes over live windows: order of use, for eviction; and the reverse
//! map from device blocks to chunks, for events of the device. The second is the
//! one helper that every kind of block device shares.
//!
//! Both are in shards, so that maps of different chunks do not meet at a lock.

use std::collections::BTreeMap;

use peerfs_blockdev::Run;

use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Mutex, lock};
use crate::types::{ObjectId, Range};

const SHARDS: usize = 16;
/// The reverse map is sharded by stretches of the device of this many bytes.
const STRETCH_BYTES: u64 = 2 << 20;

/// Names a chunk exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ChunkKey {
    pub(super) object: ObjectId,
    pub(super) number: u64,
    pub(super) id: u64,
}

/// A window in the order of use.
#[derive(Debug, Clone, Copy)]
pub(super) struct Used {
    /// Its place; larger is younger.
    pub(super) tick: u64,
    pub(super) key: ChunkKey,
    pub(super) bytes: u64,
}

/// Windows, least recently granted first. A window's tick says which shard it is in.
#[derive(Default)]
pub(super) struct UseOrder {
    next: AtomicU64,
    count: AtomicUsize,
    shards: [Mutex<BTreeMap<u64, (ChunkKey, u64)>>; SHARDS],
}

impl UseOrder {
    /// Puts a window at the young end. Returns its tick.
    pub(super) fn insert(&self, key: ChunkKey, bytes: u64) -> u64 {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.place((key, bytes))
    }

    /// Moves a window to the young end. Returns its new tick.
    pub(super) fn touch(&self, tick: u64) -> u64 {
        let found = lock(self.shard(tick)).remove(&tick);
        found.map_or(tick, |window| self.place(window))
    }

    pub(super) fn remove(&self, tick: u64) {
        if lock(self.shard(tick)).remove(&tick).is_some() {
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
    }

    pub(super) fn len(&self) -> u64 {
        self.count.load(Ordering::Relaxed) as u64
    }

    /// The `most` oldest windows younger than tick `after`, oldest first.
    pub(super) fn oldest(&self, after: u64, most: usize) -> Vec<Used> {
        let mut found: Vec<Used> = Vec::new();
        for shard in &self.shards {
            let shard = lock(shard);
            let younger = shard.range(after.saturating_add(1)..).take(most);
            found.extend(younger.map(|(tick, (key, bytes))| Used { tick: *tick, key: *key, bytes: *bytes }));
        }
        found.sort_unstable_by_key(|used| used.tick);
        found.truncate(most);
        found
    }

    fn place(&self, window: (ChunkKey, u64)) -> u64 {
        let tick = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        lock(self.shard(tick)).insert(tick, window);
        tick
    }

    fn shard(&self, tick: u64) -> &Mutex<BTreeMap<u64, (ChunkKey, u64)>> {
        &self.shards[tick as usize % SHARDS]
    }
}

/// Device blocks in windows, by their first byte. A block is in at most one.
#[derive(Default)]
pub(super) struct ReverseMap([Mutex<Blocks>; SHARDS]);

/// Runs of windows: first byte on the device, length, whose.
type Blocks = BTreeMap<u64, (u64, ChunkKey)>;

impl ReverseMap {
    pub(super) fn insert(&self, runs: &[Run], key: ChunkKey) {
        for run in runs {
            lock(self.shard(run.device_offset)).insert(run.device_offset, (run.length, key));
        }
    }

    pub(super) fn remove(&self, runs: &[Run], id: u64) {
        for run in runs {
            let mut blocks = lock(self.shard(run.device_offset));
            if blocks.get(&run.device_offset).is_some_and(|b| b.1.id == id) {
                blocks.remove(&run.device_offset);
            }
        }
    }

    /// Chunks with blocks in a range of the device.
    pub(super) fn affected(&self, range: Range) -> Vec<ChunkKey> {
        let mut keys: Vec<ChunkKey> = self.reaching(range).map(|(_, key)| key).collect();
        keys.sort_unstable_by_key(|key| key.id);
        keys.dedup();
        keys
    }

    /// Parts of a range of the device that are in windows of other objects than this one, sorted.
    pub(super) fn foreign(&self, range: Range, object: ObjectId) -> Vec<Range> {
        let others = self.reaching(range).filter(|(_, key)| key.object != object);
        let mut found: Vec<Range> = others.map(|(run, _)| run).collect();
        found.sort_unstable_by_key(|run| run.start);
        found
    }

    fn reaching(&self, range: Range) -> impl Iterator<Item = (Range, ChunkKey)> {
        self.0.iter().flat_map(move |shard| reaching(&lock(shard), range))
    }

    fn shard(&self, device_offset: u64) -> &Mutex<Blocks> {
        &self.0[(device_offset / STRETCH_BYTES) as usize % SHARDS]
    }
}

/// Runs of windows that reach into a range of the device. They never overlap, so at most one that begins before it does.
fn reaching(blocks: &Blocks, range: Range) -> Vec<(Range, ChunkKey)> {
    let first = blocks.range(..=range.start).next_back().map_or(range.start, |(start, _)| *start);
    let near = blocks.range(first..range.end.max(first)).map(|(start, (length, key))| (Range::new(*start, *length), *key));
    near.filter(|(run, _)| run.overlaps(range)).collect()
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    fn key(id: u64) -> ChunkKey {
        ChunkKey { object: ObjectId(1), number: id, id }
    }

    #[test]
    fn the_oldest_come_first_over_all_shards_and_in_portions() {
        let order = UseOrder::default();
        let mut ticks: Vec<u64> = (0..100).map(|id| order.insert(key(id), 4096)).collect();
        ticks[0] = order.touch(ticks[0]);
        order.remove(ticks[1]);
        order.remove(ticks[1]);
        assert_eq!(order.len(), 99);
        let mut seen = Vec::new();
        let mut after = 0;
        loop {
            let portion = order.oldest(after, 7);
            let Some(last) = portion.last() else { break };
            after = last.tick;
            seen.extend(portion.iter().map(|used| used.key.id));
        }
        assert_eq!(seen, (2..100).chain([0]).collect::<Vec<_>>());
    }

    #[test]
    fn the_reverse_map_finds_every_chunk_of_a_range_and_no_other() {
        let map = ReverseMap::default();
        let run = |device_offset, length| Run { window_offset: 0, device_offset, length };
        for id in 0..64 {
            map.insert(&[run(id << 20, 512 << 10)], key(id));
        }
        let ids = |start, end| map.affected(Range { start, end }).iter().map(|key| key.id).collect::<Vec<_>>();
        assert_eq!(ids(0, u64::MAX).len(), 64);
        assert_eq!(ids((3 << 20) + 4096, (5 << 20) + 1), [3, 4, 5]);
        assert!(ids((3 << 20) + (512 << 10), 4 << 20).is_empty());
        map.remove(&[run(4 << 20, 512 << 10)], 99);
        map.remove(&[run(3 << 20, 512 << 10)], 3);
        assert_eq!(ids(3 << 20, 5 << 20), [4]);
    }
}
