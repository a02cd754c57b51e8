//! Which blocks are free.
//!
//! Two sets: *recorded*, what the metadata (with its uncommitted changes) says
//! is free, and *available*, what may be handed out now. A freed block is
//! recorded at once but available only when the commit that frees it is
//! durable: until then a crash would bring its old owner back. An allocated
//! block leaves *available* at once and *recorded* when its owner's batch is
//! applied. Free records therefore agree with the extents at every commit.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use rangemap::RangeMap;

use super::freemap::FreeMap;
use super::kv::CommitSeq;
use super::meta_area::AreaAllocator;
use super::shared::SharedMap;
use super::{BlockRange, StoreError};
use crate::sync::lock;

/// Blocks of 2 MiB, the size and alignment of a huge page.
pub const HUGE_BLOCKS: u64 = 512;
/// Runs looked at for an aligned place.
const ALIGNED_TRIES: usize = 64;
/// Smallest reserve for metadata, in blocks (1 MiB).
const RESERVE_BLOCKS: u64 = 256;

/// The allocator of an open volume.
pub struct Allocator {
    pub(super) state: Mutex<State>,
    pub(super) first_block: u64,
    pub(super) end_block: u64,
    reserve_blocks: u64,
    /// The metadata may take the last half of its reserve too.
    last_half_open: AtomicBool,
}

pub(super) struct State {
    pub(super) recorded: FreeMap,
    available: FreeMap,
    /// Blocks with more than one owner.
    pub(super) shared: SharedMap,
    /// Blocks that pins still reach; the quarantine is one owner of each.
    pub(super) quarantine: FreeMap,
    /// Blocks that lost all owners but one, and the commit that is part of: a crash before would bring the others back.
    pub(super) lone: RangeMap<u64, CommitSeq>,
    /// Freed by the commit of this number or an earlier one, oldest first.
    pub(super) pending: Vec<(CommitSeq, BlockRange)>,
    /// Blocks in `pending`.
    pub(super) pending_blocks: u64,
    /// Taken by the metadata area, still in `recorded`.
    pub(super) taken: Vec<BlockRange>,
    /// All blocks of the metadata area.
    pub(super) metadata: Vec<BlockRange>,
}

/// What the records say about space.
#[derive(Debug, Default)]
pub(super) struct Recorded {
    pub(super) free: Vec<BlockRange>,
    pub(super) shared: Vec<(BlockRange, u32)>,
    pub(super) quarantine: Vec<BlockRange>,
}

/// What to allocate.
#[derive(Debug, Clone, Copy, Default)]
pub struct AllocRequest {
    /// Blocks of 4096 bytes.
    pub blocks: u64,
    /// Best first block: the one after the file's previous extent.
    pub near: Option<u64>,
}

/// Blocks taken but not yet owned by anything in the metadata. Dropping it gives them back;
/// [`super::Batch::claim`] makes them the batch's.
pub struct Allocation {
    allocator: Arc<Allocator>,
    pieces: Vec<BlockRange>,
}

impl Allocation {
    /// The blocks, in the order they are to be used.
    pub fn pieces(&self) -> &[BlockRange] {
        &self.pieces
    }

    /// Splits off the first `blocks` blocks, or all if there are fewer.
    pub fn split_front(&mut self, blocks: u64) -> Allocation {
        let mut front = Vec::new();
        let mut back = Vec::new();
        let mut left = blocks;
        for piece in std::mem::take(&mut self.pieces) {
            let taken = piece.count.min(left);
            left -= taken;
            if taken > 0 {
                front.push(BlockRange::new(piece.start, taken));
            }
            if taken < piece.count {
                back.push(BlockRange::new(piece.start + taken, piece.count - taken));
            }
        }
        self.pieces = back;
        Allocation { allocator: self.allocator.clone(), pieces: front }
    }

    pub(super) fn into_pieces(mut self) -> Vec<BlockRange> {
        std::mem::take(&mut self.pieces)
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        if !self.pieces.is_empty() {
            self.allocator.put_back(&self.pieces);
        }
    }
}

impl std::fmt::Debug for Allocation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Allocation").field(&self.pieces).finish()
    }
}

/// Free space in blocks of 4096 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Free, including what the next commit gives back and the reserve.
    pub free: u64,
    /// What data may take: `free` less the reserve for metadata.
    pub free_for_data: u64,
    /// Waiting for a commit.
    pub pending: u64,
    /// In use only because pins still reach them.
    pub quarantined: u64,
}

impl Allocator {
    /// From the records. `first_block..end_block` is what may ever be free.
    pub(super) fn new(records: Recorded, chain: &[BlockRange], first_block: u64, end_block: u64) -> Result<Self, StoreError> {
        let bounds = (first_block, end_block);
        let recorded = runs_of(records.free, bounds, "recorded as free twice")?;
        let quarantine = runs_of(records.quarantine, bounds, "in quarantine twice")?;
        let mut shared = SharedMap::default();
        for (range, references) in records.shared {
            if !range.is_within(first_block, end_block) {
                return Err(StoreError::CorruptSpace { range, problem: "outside the device" });
            }
            shared.load(range, references)?;
        }
        let mut available = recorded.clone();
        let mut taken = Vec::new();
        for range in chain {
            if available.intersects(*range) {
                available.subtract(*range);
                taken.push(*range);
            }
        }
        let reserve_blocks = RESERVE_BLOCKS.max(end_block / 100).min(end_block / 8);
        let state = Mutex::new(State {
            recorded,
            available,
            shared,
            quarantine,
            lone: RangeMap::new(),
            pending: Vec::new(),
            pending_blocks: 0,
            taken,
            metadata: chain.to_vec(),
        });
        Ok(Allocator { state, first_block, end_block, reserve_blocks, last_half_open: AtomicBool::new(false) })
    }

    /// Half of the metadata's reserve is kept back, so that what was accepted before the first half ran out, and
    /// removing things, can still be committed. This opens it or closes it again.
    pub(super) fn open_last_half(&self, open: bool) {
        self.last_half_open.store(open, Ordering::Release);
    }

    /// Blocks that a commit is sure to get: without the last half, unless nothing else is left.
    pub(super) fn metadata_room(&self) -> u64 {
        let half = self.reserve_blocks / 2;
        let available = lock(&self.state).available.total();
        if available > 2 * half { available - half } else { available.min(half) }
    }

    /// Free space now.
    pub fn space(&self) -> Space {
        let state = lock(&self.state);
        let pending = state.pending_blocks;
        let free = state.available.total() + pending;
        let quarantined = state.quarantine.total();
        Space { free, free_for_data: free.saturating_sub(self.reserve_blocks), pending, quarantined }
    }

    /// The range in parts, and whether each has several owners, or had until a change that is not durable yet.
    pub(super) fn shared_parts(&self, range: BlockRange) -> Vec<(BlockRange, bool)> {
        let state = lock(&self.state);
        let mut parts = Vec::new();
        for (part, owners) in state.shared.parts(range) {
            if owners > 1 {
                parts.push((part, true));
                continue;
            }
            let whole = part.start..part.end();
            let mut at = part.start;
            for (lone, _) in state.lone.overlapping(&whole) {
                let (start, end) = (lone.start.max(at), lone.end.min(whole.end));
                if at < start {
                    parts.push((BlockRange::new(at, start - at), false));
                }
                parts.push((BlockRange::new(start, end - start), true));
                at = end;
            }
            if at < whole.end {
                parts.push((BlockRange::new(at, whole.end - at), false));
            }
        }
        parts
    }

    /// Runs in quarantine.
    pub(super) fn quarantined(&self) -> Vec<BlockRange> {
        lock(&self.state).quarantine.runs().collect()
    }

    /// Takes blocks for data: all of them or none. Runs of 2 MiB and more are aligned to it if possible.
    pub fn allocate(self: &Arc<Self>, request: AllocRequest) -> Result<Allocation, StoreError> {
        let mut state = lock(&self.state);
        let usable = state.available.total().saturating_sub(self.reserve_blocks);
        if request.blocks > usable {
            return Err(StoreError::NoSpace { wanted_blocks: request.blocks, free_blocks: usable });
        }
        let mut pieces: Vec<BlockRange> = Vec::new();
        let mut left = request.blocks;
        let mut near = request.near;
        while left > 0 {
            let Some(piece) = choose(&state.available, left, near) else { break };
            state.available.subtract(piece);
            left -= piece.count;
            near = Some(piece.end());
            match pieces.last_mut() {
                Some(last) if last.end() == piece.start => last.count += piece.count,
                _ => pieces.push(piece),
            }
        }
        drop(state);
        Ok(Allocation { allocator: self.clone(), pieces })
    }

    /// The commit of this number is durable: what it freed may be used again.
    pub(super) fn release_committed(&self, seq: CommitSeq) {
        self.take_committed(seq).into_iter().for_each(|range| self.release(range));
    }

    /// What that commit and earlier ones freed. It waits for [`Allocator::release`].
    pub(super) fn take_committed(&self, seq: CommitSeq) -> Vec<BlockRange> {
        let mut state = lock(&self.state);
        let pending = std::mem::take(&mut state.pending);
        let (freed, pending): (Vec<_>, Vec<_>) = pending.into_iter().partition(|(freed_by, _)| *freed_by <= seq);
        state.pending = pending;
        let lone = std::mem::take(&mut state.lone);
        state.lone = lone.into_iter().filter(|(_, alone_by)| *alone_by > seq).collect();
        freed.into_iter().map(|(_, range)| range).collect()
    }

    /// Makes what [`Allocator::take_committed`] gave available.
    pub(super) fn release(&self, freed: BlockRange) {
        let mut state = lock(&self.state);
        state.pending_blocks -= freed.count;
        state.available.insert(freed);
    }

    /// Takes the free blocks that are chosen, all in one run.
    pub(super) fn take_where(self: &Arc<Self>, choose: impl FnOnce(&FreeMap) -> Option<BlockRange>) -> Option<Allocation> {
        let mut state = lock(&self.state);
        let piece = choose(&state.available)?;
        state.available.subtract(piece);
        drop(state);
        Some(Allocation { allocator: self.clone(), pieces: vec![piece] })
    }

    fn put_back(&self, pieces: &[BlockRange]) {
        let mut state = lock(&self.state);
        for piece in pieces {
            state.available.insert(*piece);
        }
    }
}

fn runs_of(runs: Vec<BlockRange>, (low, high): (u64, u64), twice: &'static str) -> Result<FreeMap, StoreError> {
    let mut map = FreeMap::default();
    for range in runs {
        if !range.is_within(low, high) {
            return Err(StoreError::CorruptSpace { range, problem: "outside the device" });
        }
        if map.intersects(range) {
            return Err(StoreError::CorruptSpace { range, problem: twice });
        }
        map.insert(range);
    }
    Ok(map)
}

/// The next piece for `left` blocks: after `near` if free, else aligned if large, else the
/// shortest run that is long enough, else the longest.
fn choose(free: &FreeMap, left: u64, near: Option<u64>) -> Option<BlockRange> {
    if let Some(near) = near
        && let Some(run) = free.run_at(near)
    {
        return Some(BlockRange::new(near, left.min(run.end() - near)));
    }
    let mut large = left;
    while large >= HUGE_BLOCKS {
        if let Some(aligned) = free.aligned_fit(large, HUGE_BLOCKS, ALIGNED_TRIES) {
            return Some(aligned);
        }
        large = large / 2 / HUGE_BLOCKS * HUGE_BLOCKS;
    }
    let run = free.best_fit(left).or_else(|| free.longest())?;
    Some(BlockRange::new(run.start, left.min(run.count)))
}

impl AreaAllocator for Allocator {
    fn take(&self, want: u64, need: u64, max_pieces: usize, near: u64) -> Option<Vec<BlockRange>> {
        let last_half = self.last_half_open.load(Ordering::Acquire);
        let mut state = lock(&self.state);
        let usable = state.available.total().saturating_sub(if last_half { 0 } else { self.reserve_blocks / 2 });
        if need > usable {
            return None;
        }
        // On a nearly full volume the metadata takes no more than a share beyond its need, in the end nothing beyond it.
        let share = if last_half { 0 } else { usable / 4 };
        let mut left = want.min(need.max(share));
        let mut pieces = Vec::new();
        let mut near = Some(near);
        let mut got = 0;
        while left > 0 && pieces.len() < max_pieces {
            let Some(piece) = choose(&state.available, left, near.take()) else { break };
            state.available.subtract(piece);
            left -= piece.count;
            got += piece.count;
            pieces.push(piece);
        }
        if got < need {
            for piece in pieces {
                state.available.insert(piece);
            }
            return None;
        }
        state.taken.extend(&pieces);
        state.metadata.extend(&pieces);
        Some(pieces)
    }

    fn put_back(&self, pieces: &[BlockRange]) {
        let mut state = lock(&self.state);
        state.taken.retain(|taken| !pieces.contains(taken));
        state.metadata.retain(|owned| !pieces.contains(owned));
        for piece in pieces {
            state.available.insert(*piece);
        }
    }
}

impl std::fmt::Debug for Allocator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Allocator").field("space", &self.space()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::super::batch::Owners;
    use super::super::key::Key;
    use super::super::kv::Ops;
    use super::super::records::{BlockCount, Record};
    use super::super::testdev::Rng;
    use super::*;

    const END: u64 = 100_000;

    fn allocator() -> Arc<Allocator> {
        let chain = [BlockRange::new(2, 510)];
        let free = vec![BlockRange::new(2, END - 2)];
        Arc::new(Allocator::new(Recorded { free, ..Recorded::default() }, &chain, 2, END).unwrap())
    }

    #[test]
    fn large_requests_are_aligned_and_appends_contiguous() {
        let allocator = allocator();
        let small = allocator.allocate(AllocRequest { blocks: 3, near: None }).unwrap();
        assert_eq!(small.pieces().len(), 1);
        let large = allocator.allocate(AllocRequest { blocks: 5000, near: None }).unwrap();
        assert_eq!(large.pieces().len(), 1);
        assert_eq!(large.pieces()[0].start % HUGE_BLOCKS, 0);
        let end = large.pieces()[0].end();
        let more = allocator.allocate(AllocRequest { blocks: 700, near: Some(end) }).unwrap();
        assert_eq!(more.pieces(), [BlockRange::new(end, 700)]);
    }

    #[test]
    fn dropping_an_allocation_gives_it_back() {
        let allocator = allocator();
        let before = allocator.space();
        drop(allocator.allocate(AllocRequest { blocks: 5000, near: None }).unwrap());
        assert_eq!(allocator.space(), before);
    }

    #[test]
    fn a_split_allocation_is_given_back_in_parts() {
        let allocator = allocator();
        let before = allocator.space().free;
        let mut back = allocator.allocate(AllocRequest { blocks: 1000, near: None }).unwrap();
        let front = back.split_front(300);
        let start = front.pieces()[0].start;
        assert_eq!(front.pieces(), [BlockRange::new(start, 300)]);
        assert_eq!(back.pieces(), [BlockRange::new(start + 300, 700)]);
        drop(front);
        assert_eq!(allocator.space().free, before - 700);
        assert_eq!(back.split_front(5000).pieces().len(), 1);
        assert!(back.pieces().is_empty());
        assert_eq!(allocator.space().free, before);
    }

    #[test]
    fn the_reserve_is_for_metadata_only() {
        let allocator = allocator();
        let blocks = allocator.space().free_for_data;
        let all = allocator.allocate(AllocRequest { blocks, near: None }).unwrap();
        let error = allocator.allocate(AllocRequest { blocks: 1, near: None }).unwrap_err();
        assert_eq!(error.errno(), libc::ENOSPC);
        assert!(allocator.take(1024, 10, 4, 0).is_some());
        drop(all);
    }

    #[test]
    fn contradictions_change_nothing() {
        let allocator = allocator();
        let before = allocator.space();
        for freed in [
            BlockRange::new(0, 1),
            BlockRange::new(END - 1, 2),
            BlockRange::new(u64::MAX, u64::MAX),
            BlockRange::new(600, 1),
            BlockRange::new(100, 1),
        ] {
            let result = allocator.settle(&Owners { freed: vec![freed], ..Owners::default() }, |_| panic!("must not apply"));
            assert!(matches!(result, Err(StoreError::CorruptSpace { .. })), "{freed}");
        }
        assert_eq!(allocator.space(), before);
    }

    /// Random allocation and freeing: nothing is handed out twice or before its commit, and the
    /// emitted records always describe exactly what is not owned.
    #[test]
    fn agrees_with_a_model() {
        for seed in 0..20 {
            let mut rng = Rng::new(seed);
            let allocator = allocator();
            let mut records = std::collections::BTreeMap::from([(2, END - 2)]);
            let mut owned: Vec<BlockRange> = Vec::new();
            let mut uncommitted: Vec<BlockRange> = Vec::new();
            let mut metadata = vec![BlockRange::new(2, 510)];
            let next_commit = Cell::new(1);
            for _ in 0..400 {
                let mut claimed = Vec::new();
                let mut owners = Owners::default();
                match rng.below(5) {
                    0 | 1 => {
                        let request = AllocRequest { blocks: 1 + rng.below(2000), near: owned.last().map(|range| range.end()) };
                        let Ok(allocation) = allocator.allocate(request) else { continue };
                        claimed = allocation.pieces().to_vec();
                        owners.claimed.push(allocation);
                        let total: u64 = claimed.iter().map(|range| range.count).sum();
                        assert_eq!(total, request.blocks, "seed {seed}");
                        for piece in &claimed {
                            let mut others = owned.iter().chain(&uncommitted).chain(&metadata);
                            assert!(others.all(|other| !other.overlaps(*piece)), "seed {seed}");
                        }
                    }
                    2 if !owned.is_empty() => {
                        owners.freed.push(owned.swap_remove(rng.below(owned.len() as u64) as usize));
                    }
                    3 => {
                        next_commit.set(next_commit.get() + 1);
                        allocator.release_committed(next_commit.get() - 1);
                        uncommitted.clear();
                        continue;
                    }
                    _ => {
                        if let Some(pieces) = allocator.take(1 + rng.below(50), 1, 3, 0) {
                            metadata.extend(pieces);
                        }
                    }
                }
                let apply = |ops: Ops| {
                    for (key, value) in ops {
                        let Ok(Key::Free(start)) = Key::decode(&key) else { panic!("{key:?}") };
                        match value {
                            Some(count) => {
                                let BlockCount(count) = BlockCount::decode(&count).unwrap();
                                records.insert(start, count);
                            }
                            None => drop(records.remove(&start)),
                        }
                    }
                    Ok(next_commit.get())
                };
                allocator.settle(&owners, apply).unwrap();
                owners.claimed.into_iter().for_each(|allocation| drop(allocation.into_pieces()));
                owned.extend(claimed);
                uncommitted.extend(owners.freed);
                let recorded: u64 = records.values().sum();
                let used: u64 = owned.iter().chain(&metadata).map(|range| range.count).sum();
                assert_eq!(recorded + used, END - 2, "seed {seed}");
            }
        }
    }
}
