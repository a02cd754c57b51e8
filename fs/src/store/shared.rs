//! How many owners a block has, where it has more than one.
//!
//! Every owner (an extent of a file, the quarantine) holds one reference. Blocks with
//! a single owner are in no run, so the map is as large as what is shared, not as the volume.

use std::collections::BTreeMap;

use super::key::Key;
use super::kv::Ops;
use super::records::{Record, SharedRun};
use super::{BlockRange, StoreError};

/// Runs of blocks with the same number of references, at least two. Maximal, never overlapping.
#[derive(Debug, Default)]
pub(super) struct SharedMap {
    runs: BTreeMap<u64, SharedRun>,
}

/// Runs as they were before a change, oldest first: what undoes it, and says which records it touched.
pub(super) type Journal = Vec<(u64, Option<SharedRun>)>;

impl SharedMap {
    /// Adds one from its record.
    pub(super) fn load(&mut self, range: BlockRange, references: u32) -> Result<(), StoreError> {
        let corrupt = |problem| Err(StoreError::CorruptSpace { range, problem });
        if self.parts(range).iter().any(|(_, references)| *references > 1) {
            return corrupt("recorded as shared twice");
        }
        if references < 2 {
            return corrupt("recorded as shared by fewer than two");
        }
        self.runs.insert(range.start, SharedRun { len_blocks: range.count, references });
        Ok(())
    }

    /// The range in parts with one number of references each: 1 where it is in no run.
    pub(super) fn parts(&self, range: BlockRange) -> Vec<(BlockRange, u32)> {
        let mut parts = Vec::new();
        let mut at = range.start;
        let first = self.runs.range(..=range.start).next_back().map_or(range.start, |(start, _)| *start);
        for (&start, run) in self.runs.range(first..range.end().max(first)) {
            let end = start.saturating_add(run.len_blocks).min(range.end());
            if end <= at {
                continue;
            }
            if start > at {
                parts.push((BlockRange::new(at, start - at), 1));
                at = start;
            }
            parts.push((BlockRange::new(at, end - at), run.references));
            at = end;
        }
        if at < range.end() {
            parts.push((BlockRange::new(at, range.end() - at), 1));
        }
        parts
    }

    /// One more owner of each block of the range.
    pub(super) fn add(&mut self, range: BlockRange, journal: &mut Journal) -> Result<(), StoreError> {
        for (part, references) in self.parts(range) {
            let more = references.checked_add(1).ok_or(StoreError::CorruptSpace { range: part, problem: "shared too often" })?;
            self.set(part, more, journal);
        }
        Ok(())
    }

    /// One owner less. Returns the parts that have none any more.
    pub(super) fn drop_one(&mut self, range: BlockRange, journal: &mut Journal) -> Vec<BlockRange> {
        let mut free = Vec::new();
        for (part, references) in self.parts(range) {
            match references {
                0 | 1 => free.push(part),
                more => self.set(part, more - 1, journal),
            }
        }
        free
    }

    /// Gives a part that lies in one run, or in none, a number of references.
    fn set(&mut self, part: BlockRange, references: u32, journal: &mut Journal) {
        if let Some((&start, &run)) = self.runs.range(..=part.start).next_back()
            && part.start < start.saturating_add(run.len_blocks)
        {
            let end = start.saturating_add(run.len_blocks);
            self.put(start, None, journal);
            if start < part.start {
                self.put(start, Some(SharedRun { len_blocks: part.start - start, ..run }), journal);
            }
            if part.end() < end {
                self.put(part.end(), Some(SharedRun { len_blocks: end - part.end(), ..run }), journal);
            }
        }
        if references > 1 {
            self.join(part, references, journal);
        }
    }

    /// Enters a run where none is, as one with neighbours of the same kind.
    fn join(&mut self, part: BlockRange, references: u32, journal: &mut Journal) {
        let mut joined = part;
        if let Some((&start, &before)) = self.runs.range(..part.start).next_back()
            && start.saturating_add(before.len_blocks) == part.start
            && before.references == references
        {
            joined = BlockRange::new(start, before.len_blocks + joined.count);
        }
        if let Some(&after) = self.runs.get(&part.end())
            && after.references == references
        {
            self.put(part.end(), None, journal);
            joined.count += after.len_blocks;
        }
        self.put(joined.start, Some(SharedRun { len_blocks: joined.count, references }), journal);
    }

    fn put(&mut self, start: u64, run: Option<SharedRun>, journal: &mut Journal) {
        let before = match run {
            Some(run) => self.runs.insert(start, run),
            None => self.runs.remove(&start),
        };
        journal.push((start, before));
    }

    /// Takes changes back.
    pub(super) fn undo(&mut self, journal: Journal) {
        for (start, before) in journal.into_iter().rev() {
            match before {
                Some(run) => self.runs.insert(start, run),
                None => self.runs.remove(&start),
            };
        }
    }

    /// The records that changes call for.
    pub(super) fn records(&self, journal: &Journal) -> Ops {
        let mut starts: Vec<u64> = journal.iter().map(|(start, _)| *start).collect();
        starts.sort_unstable();
        starts.dedup();
        let value = |start| self.runs.get(&start).map(|run| run.encode().into());
        starts.into_iter().map(|start| (Key::Shared(start).encode(), value(start))).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::super::testdev::Rng;
    use super::*;

    #[test]
    fn counts_equal_a_model_and_undo_takes_everything_back() {
        for seed in 0..20 {
            let mut rng = Rng::new(seed);
            let mut map = SharedMap::default();
            let mut model: HashMap<u64, u32> = HashMap::new();
            for step in 0..300 {
                let range = BlockRange::new(rng.below(60), 1 + rng.below(12));
                let before = map.runs.clone();
                let mut journal = Journal::new();
                let undo = rng.below(4) == 0;
                if rng.below(2) == 0 {
                    map.add(range, &mut journal).expect("far below the limit");
                    if !undo {
                        (range.start..range.end()).for_each(|block| *model.entry(block).or_insert(1) += 1);
                    }
                } else {
                    let free = map.drop_one(range, &mut journal);
                    let alone: u64 = free.iter().map(|part| part.count).sum();
                    let expected = (range.start..range.end()).filter(|block| model.get(block).is_none_or(|count| *count < 2));
                    assert_eq!(alone, expected.count() as u64, "seed {seed} step {step}");
                    if !undo {
                        for block in range.start..range.end() {
                            model.entry(block).and_modify(|count| *count = (*count - 1).max(1));
                        }
                    }
                }
                if undo {
                    map.undo(journal);
                    assert_eq!(map.runs, before, "seed {seed} step {step}");
                }
                for (part, references) in map.parts(BlockRange::new(0, 80)) {
                    for block in part.start..part.end() {
                        assert_eq!(model.get(&block).copied().unwrap_or(1), references, "seed {seed} step {step}");
                    }
                }
            }
        }
    }
}
