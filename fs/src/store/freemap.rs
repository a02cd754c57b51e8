//! Sets of free blocks as maximal runs.

use std::collections::{BTreeMap, BTreeSet};

use super::BlockRange;

/// Free runs by start and by length.
#[derive(Debug, Default, Clone)]
pub(super) struct FreeMap {
    by_start: BTreeMap<u64, u64>,
    by_length: BTreeSet<(u64, u64)>,
    total: u64,
}

/// What changed in a set: runs that are no longer maximal and runs that are now.
#[derive(Debug, Default)]
pub(super) struct RunChanges {
    /// In order; `None` means the run starting there is gone.
    pub(super) runs: Vec<(u64, Option<u64>)>,
}

impl FreeMap {
    /// Free blocks.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    fn link(&mut self, range: BlockRange) {
        self.by_start.insert(range.start, range.count);
        self.by_length.insert((range.count, range.start));
        self.total += range.count;
    }

    fn unlink(&mut self, range: BlockRange) {
        self.by_start.remove(&range.start);
        self.by_length.remove(&(range.count, range.start));
        self.total -= range.count;
    }

    /// The run with this block.
    pub(super) fn run_at(&self, block: u64) -> Option<BlockRange> {
        let (&start, &count) = self.by_start.range(..=block).next_back()?;
        let run = BlockRange::new(start, count);
        (block < run.end()).then_some(run)
    }

    /// True when any block of the range is free.
    pub(super) fn intersects(&self, range: BlockRange) -> bool {
        let before = self.by_start.range(..range.end()).next_back();
        before.is_some_and(|(&start, &count)| BlockRange::new(start, count).overlaps(range))
    }

    /// Adds a range, none of which may be free already; merges with its neighbours.
    pub(super) fn insert(&mut self, range: BlockRange) -> RunChanges {
        debug_assert!(!self.intersects(range));
        let mut changes = RunChanges::default();
        let mut merged = range;
        if let Some(before) = range.start.checked_sub(1).and_then(|block| self.run_at(block)) {
            self.unlink(before);
            merged = BlockRange::new(before.start, before.count + merged.count);
        }
        if let Some(after) = self.run_at(range.end()) {
            self.unlink(after);
            changes.runs.push((after.start, None));
            merged.count += after.count;
        }
        self.link(merged);
        changes.runs.push((merged.start, Some(merged.count)));
        changes
    }

    /// Removes a range, all of which must be in one run; `None` (and no change) otherwise.
    pub(super) fn remove(&mut self, range: BlockRange) -> Option<RunChanges> {
        let run = self.run_at(range.start).filter(|run| range.end() <= run.end())?;
        let mut changes = RunChanges::default();
        self.unlink(run);
        if run.start < range.start {
            let head = BlockRange::new(run.start, range.start - run.start);
            self.link(head);
            changes.runs.push((head.start, Some(head.count)));
        } else {
            changes.runs.push((run.start, None));
        }
        if range.end() < run.end() {
            let tail = BlockRange::new(range.end(), run.end() - range.end());
            self.link(tail);
            changes.runs.push((tail.start, Some(tail.count)));
        }
        Some(changes)
    }

    /// Removes whatever part of the range is free.
    pub(super) fn subtract(&mut self, range: BlockRange) -> RunChanges {
        let mut changes = RunChanges::default();
        while let Some((&start, &count)) = self.by_start.range(..range.end()).next_back() {
            let run = BlockRange::new(start, count);
            if !run.overlaps(range) {
                break;
            }
            let from = run.start.max(range.start);
            let part = BlockRange::new(from, run.end().min(range.end()) - from);
            match self.remove(part) {
                Some(removed) => changes.runs.extend(removed.runs),
                None => break,
            }
        }
        changes
    }

    /// All runs, in order.
    pub(super) fn runs(&self) -> impl Iterator<Item = BlockRange> + '_ {
        self.by_start.iter().map(|(&start, &count)| BlockRange::new(start, count))
    }

    /// The runs that have blocks in a range, in order.
    pub(super) fn runs_in(&self, range: BlockRange) -> impl Iterator<Item = BlockRange> + '_ {
        let first = self.run_at(range.start).map_or(range.start, |run| run.start);
        let runs = self.by_start.range(first..range.end().max(first));
        runs.map(|(&start, &count)| BlockRange::new(start, count))
    }

    /// The shortest run of at least `count` blocks.
    pub(super) fn best_fit(&self, count: u64) -> Option<BlockRange> {
        self.by_length.range((count, 0)..).next().map(|&(count, start)| BlockRange::new(start, count))
    }

    /// The longest run.
    pub(super) fn longest(&self) -> Option<BlockRange> {
        self.by_length.last().map(|&(count, start)| BlockRange::new(start, count))
    }

    /// `count` blocks that start at a multiple of `align`, in one of the `tries` best runs.
    pub(super) fn aligned_fit(&self, count: u64, align: u64, tries: usize) -> Option<BlockRange> {
        let candidates = self.by_length.range((count, 0)..).take(tries);
        let longest = self.by_length.iter().next_back();
        candidates.chain(longest).find_map(|&(length, start)| {
            let aligned = BlockRange::new(start.next_multiple_of(align), count);
            (aligned.end() <= start + length).then_some(aligned)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::testdev::Rng;
    use super::*;

    #[test]
    fn agrees_with_a_set_of_blocks() {
        let mut rng = Rng::new(4);
        let mut map = FreeMap::default();
        let mut model = BTreeSet::new();
        let mut mirror = BTreeMap::new();
        for _ in 0..20_000 {
            let range = BlockRange::new(rng.below(500), 1 + rng.below(20));
            let blocks = range.start..range.end();
            let changes = match rng.below(3) {
                0 if !map.intersects(range) => {
                    model.extend(blocks);
                    map.insert(range)
                }
                1 => match map.remove(range) {
                    Some(changes) => {
                        assert!(blocks.clone().all(|block| model.remove(&block)));
                        changes
                    }
                    None => RunChanges::default(),
                },
                2 => {
                    model.retain(|block| !blocks.contains(block));
                    map.subtract(range)
                }
                _ => RunChanges::default(),
            };
            for (start, count) in changes.runs {
                match count {
                    Some(count) => mirror.insert(start, count),
                    None => mirror.remove(&start),
                };
            }
            assert_eq!(map.total(), model.len() as u64);
            assert_eq!(map.by_start, mirror, "the reported changes rebuild the runs");
        }
        let blocks: Vec<u64> = map.by_start.iter().flat_map(|(&start, &count)| start..start + count).collect();
        assert_eq!(blocks, model.into_iter().collect::<Vec<_>>());
    }
}
