//! What a batch does to the owners of blocks, and the records that follow from it.
//!
//! A block is free, or has owners: extents of files and the quarantine, each counted once.
//! Freeing takes one owner away; only without the last does a block become free. Quarantining
//! hands an extent's part of the ownership over to the quarantine, where it stays until a pin ends.

use std::sync::Arc;

use super::alloc::{Allocator, State};
use super::batch::Owners;
use super::freemap::{FreeMap, RunChanges};
use super::key::Key;
use super::kv::{CommitSeq, Ops};
use super::records::{BlockCount, Record};
use super::shared::Journal;
use super::{BlockRange, StoreError};
use crate::sync::lock;

/// What was done so far, so that it can be taken back.
#[derive(Default)]
struct Done {
    claimed: Vec<BlockRange>,
    freed: Vec<BlockRange>,
    quarantined: Vec<BlockRange>,
    released: Vec<BlockRange>,
    lone: Vec<BlockRange>,
    shared: Journal,
}

impl Allocator {
    /// Turns a batch's changes of ownership into records and has `apply` apply them, in one
    /// step, so that records are applied in the order in which the sets change. When the blocks
    /// contradict the records nothing is changed.
    pub(super) fn settle(
        self: &Arc<Self>,
        owners: &Owners,
        apply: impl FnOnce(Ops) -> Result<CommitSeq, StoreError>,
    ) -> Result<CommitSeq, StoreError> {
        let mut state = lock(&self.state);
        let mut done = Done::default();
        let mut ops = Ops::new();
        if let Err(error) = self.record(&mut state, owners, &mut ops, &mut done) {
            state.undo(done);
            return Err(error);
        }
        for range in std::mem::take(&mut state.taken) {
            append(&mut ops, Key::Free, state.recorded.subtract(range));
        }
        ops.extend(state.shared.records(&done.shared));
        let seq = apply(ops)?;
        state.pending.extend(done.freed.iter().map(|range| (seq, *range)));
        for range in done.lone {
            state.lone.insert(range.start..range.end(), seq);
        }
        state.pending_blocks += done.freed.iter().map(|range| range.count).sum::<u64>();
        Ok(seq)
    }

    fn record(&self, state: &mut State, owners: &Owners, ops: &mut Ops, done: &mut Done) -> Result<(), StoreError> {
        for range in owners.claimed.iter().flat_map(|allocation| allocation.pieces()) {
            let corrupt = StoreError::CorruptSpace { range: *range, problem: "not free" };
            append(ops, Key::Free, state.recorded.remove(*range).ok_or(corrupt)?);
            done.claimed.push(*range);
        }
        for range in &owners.shared {
            self.check_owned(state, *range)?;
            state.shared.add(*range, &mut done.shared)?;
        }
        for range in &owners.quarantined {
            self.quarantine(state, *range, ops, done)?;
        }
        for range in &owners.released {
            let corrupt = StoreError::CorruptSpace { range: *range, problem: "not in quarantine" };
            append(ops, Key::Quarantine, state.quarantine.remove(*range).ok_or(corrupt)?);
            done.released.push(*range);
            self.drop_owner(state, *range, ops, done)?;
        }
        for range in &owners.freed {
            self.drop_owner(state, *range, ops, done)?;
        }
        Ok(())
    }

    /// An extent's part in the range goes to the quarantine; where that is an owner already, it is given up.
    fn quarantine(&self, state: &mut State, range: BlockRange, ops: &mut Ops, done: &mut Done) -> Result<(), StoreError> {
        for (part, held) in state.quarantine.parts(range) {
            if held {
                self.drop_owner(state, part, ops, done)?;
            } else {
                self.check_owned(state, part)?;
                append(ops, Key::Quarantine, state.quarantine.insert(part));
                done.quarantined.push(part);
            }
        }
        Ok(())
    }

    fn drop_owner(&self, state: &mut State, range: BlockRange, ops: &mut Ops, done: &mut Done) -> Result<(), StoreError> {
        self.check_owned(state, range)?;
        let pairs = state.shared.parts(range).into_iter().filter(|(_, owners)| *owners == 2);
        done.lone.extend(pairs.map(|(part, _)| part));
        for free in state.shared.drop_one(range, &mut done.shared) {
            if state.quarantine.intersects(free) {
                return Err(StoreError::CorruptSpace { range: free, problem: "owned by a file and by the quarantine alone" });
            }
            append(ops, Key::Free, state.recorded.insert(free));
            done.freed.push(free);
        }
        Ok(())
    }

    fn check_owned(&self, state: &State, range: BlockRange) -> Result<(), StoreError> {
        let problem = if !range.is_within(self.first_block, self.end_block) {
            "owned by a file but outside the device"
        } else if state.recorded.intersects(range) {
            "owned by a file and free"
        } else if state.metadata.iter().any(|owned| owned.overlaps(range)) {
            "owned by a file and by the metadata"
        } else {
            return Ok(());
        };
        Err(StoreError::CorruptSpace { range, problem })
    }
}

impl State {
    fn undo(&mut self, done: Done) {
        for range in done.freed {
            self.recorded.subtract(range);
        }
        for range in done.quarantined {
            self.quarantine.subtract(range);
        }
        for range in done.released {
            self.quarantine.insert(range);
        }
        for range in done.claimed {
            self.recorded.insert(range);
        }
        self.shared.undo(done.shared);
    }
}

impl FreeMap {
    /// The range in parts that are wholly in the set or wholly not.
    fn parts(&self, range: BlockRange) -> Vec<(BlockRange, bool)> {
        let mut parts = Vec::new();
        let mut at = range.start;
        for run in self.runs_in(range) {
            let start = run.start.max(range.start);
            if start > at {
                parts.push((BlockRange::new(at, start - at), false));
            }
            at = run.end().min(range.end());
            parts.push((BlockRange::new(start, at - start), true));
        }
        if at < range.end() {
            parts.push((BlockRange::new(at, range.end() - at), false));
        }
        parts
    }
}

fn append(ops: &mut Ops, key: impl Fn(u64) -> Key<'static>, changes: RunChanges) {
    for (start, count) in changes.runs {
        let value = count.map(|count| BlockCount(count).encode().into());
        ops.push((key(start).encode(), value));
    }
}

#[cfg(test)]
mod tests {
    use super::super::alloc::{AllocRequest, Recorded};
    use super::*;

    #[test]
    fn blocks_are_free_when_their_last_owner_is_gone() {
        let free = vec![BlockRange::new(2, 998)];
        let allocator = Arc::new(Allocator::new(Recorded { free, ..Default::default() }, &[], 2, 1000).unwrap());
        let settle = |change: &dyn Fn(&mut Owners)| {
            let mut owners = Owners::default();
            change(&mut owners);
            let done = allocator.settle(&owners, |_| Ok(1)).map(drop);
            owners.claimed.into_iter().for_each(|allocation| drop(allocation.into_pieces()));
            done
        };
        let taken = allocator.allocate(AllocRequest { blocks: 100, near: Some(100) }).unwrap();
        let range = taken.pieces()[0];
        let mut owners = Owners { claimed: vec![taken], ..Default::default() };
        allocator.settle(&owners, |_| Ok(1)).unwrap();
        owners.claimed.drain(..).for_each(|allocation| drop(allocation.into_pieces()));
        let used = || 998 - allocator.space().free;
        let half = BlockRange::new(range.start, 50);

        settle(&|owners| owners.shared.push(half)).unwrap();
        settle(&|owners| owners.freed.push(range)).unwrap();
        assert_eq!(used(), 50, "half of it has another owner");
        settle(&|owners| owners.quarantined.push(half)).unwrap();
        assert_eq!((used(), allocator.space().quarantined), (50, 50));
        let error = settle(&|owners| owners.freed.push(half));
        assert!(matches!(error, Err(StoreError::CorruptSpace { .. })), "the quarantine alone owns it: {error:?}");
        assert_eq!((used(), allocator.space().quarantined), (50, 50), "a refusal changes nothing");
        let quarter = BlockRange::new(range.start + 10, 10);
        settle(&|owners| owners.released.push(quarter)).unwrap();
        assert_eq!((used(), allocator.space().quarantined), (40, 40));
        assert!(settle(&|owners| owners.released.push(half)).is_err(), "a part is not there any more");
        for left in allocator.quarantined() {
            settle(&|owners| owners.released.push(left)).unwrap();
        }
        assert_eq!((used(), allocator.space().quarantined), (0, 0));
    }

    #[test]
    fn a_shared_block_in_quarantine_has_both_owners() {
        let allocator = Arc::new(Allocator::new(Recorded::default(), &[], 2, 1000).unwrap());
        let range = BlockRange::new(100, 10);
        let settle = |owners: Owners| allocator.settle(&owners, |_| Ok(1)).unwrap();
        settle(Owners { shared: vec![range], ..Default::default() });
        settle(Owners { quarantined: vec![range], ..Default::default() });
        assert_eq!(allocator.shared_parts(range), [(range, true)]);
        // The other file is pinned and truncated too: the quarantine is still one owner.
        settle(Owners { quarantined: vec![range], ..Default::default() });
        assert_eq!((allocator.shared_parts(range), allocator.space().free), (vec![(range, true)], 0));
        allocator.release_committed(1);
        assert_eq!(allocator.shared_parts(range), [(range, false)], "only now a crash would not bring the other owner back");
        settle(Owners { released: vec![range], ..Default::default() });
        assert_eq!(allocator.space().free, 10);
    }
}
