//! Every block has exactly one owner.

use std::collections::BTreeMap;

use super::super::BlockRange;
use super::super::key::{Key, RecordError};
use super::super::records::{BlockCount, Extent, Record, SharedRun, extent_flags};
use super::super::superblock::SUPERBLOCK_BLOCKS;
use super::problem::{Owner, Problem, Report};

/// Who owns which blocks, as the records say.
pub(super) struct Space {
    device_blocks: u64,
    chain: Vec<BlockRange>,
    owned: Vec<(BlockRange, Owner)>,
    /// Extents that may have other owners beside them, and what is in quarantine.
    counted: Vec<(BlockRange, Owner)>,
    shared_runs: Vec<(BlockRange, u32)>,
    free: Vec<BlockRange>,
    extents: u64,
}

/// Owners of a block that may have several, and what is recorded of them.
#[derive(Debug, Default)]
struct Owned {
    extents: i64,
    quarantine: i64,
    recorded: i64,
}

impl Owned {
    fn count(&mut self, owner: Owner, by: i64) {
        match owner {
            Owner::Quarantine => self.quarantine += by,
            _ => self.extents += by,
        }
    }
}

impl Space {
    pub(super) fn new(chain: &[BlockRange], device_blocks: u64) -> Self {
        let mut owned = vec![(BlockRange::new(0, SUPERBLOCK_BLOCKS), Owner::Superblock)];
        owned.extend(chain.iter().map(|range| (*range, Owner::Metadata)));
        Space {
            device_blocks,
            chain: chain.to_vec(),
            owned,
            counted: Vec::new(),
            shared_runs: Vec::new(),
            free: Vec::new(),
            extents: 0,
        }
    }

    pub(super) fn visit(&mut self, key: &Key<'_>, value: &[u8]) -> Result<(), RecordError> {
        match *key {
            Key::Extent(ino, _) => {
                let extent = Extent::decode(value)?;
                let range = BlockRange::new(extent.device_block, extent.len_blocks);
                self.extents += 1;
                if extent.flags & extent_flags::SHARED != 0 {
                    self.counted.push((range, Owner::Inode(ino)));
                } else {
                    self.owned.push((range, Owner::Inode(ino)));
                }
            }
            Key::Free(start) => {
                self.free.push(BlockRange::new(start, BlockCount::decode(value)?.0));
            }
            Key::Quarantine(start) => {
                let range = BlockRange::new(start, BlockCount::decode(value)?.0);
                self.counted.push((range, Owner::Quarantine));
            }
            Key::Shared(start) => {
                let run = SharedRun::decode(value)?;
                self.shared_runs.push((BlockRange::new(start, run.len_blocks), run.references));
            }
            _ => {}
        }
        Ok(())
    }

    pub(super) fn finish(mut self, report: &mut Report) {
        report.total_blocks = self.device_blocks;
        report.extents = self.extents;
        self.check_references(report);
        let mut all = std::mem::take(&mut self.owned);
        for range in std::mem::take(&mut self.free) {
            all.extend(self.outside_chain(range).into_iter().map(|range| (range, Owner::Free)));
        }
        self.sweep(all, report);
    }

    /// The metadata area grows in the middle of a commit, so free records may still name its blocks.
    fn outside_chain(&self, range: BlockRange) -> Vec<BlockRange> {
        let mut left = vec![range];
        for owned in &self.chain {
            let mut next = Vec::with_capacity(left.len() + 1);
            for part in left {
                if !part.overlaps(*owned) {
                    next.push(part);
                    continue;
                }
                if part.start < owned.start {
                    next.push(BlockRange::new(part.start, owned.start - part.start));
                }
                if owned.end() < part.end() {
                    next.push(BlockRange::new(owned.end(), part.end() - owned.end()));
                }
            }
            left = next;
        }
        left
    }

    /// Compares how many owners share each block with what is recorded, and makes each run of shared blocks one owned
    /// range. The quarantine is one owner beside the extents.
    fn check_references(&mut self, report: &mut Report) {
        let mut edges: BTreeMap<u64, Owned> = BTreeMap::new();
        for (range, owner) in &self.counted {
            if !range.is_within(0, self.device_blocks) {
                report.add(Problem::OutsideDevice { owner: *owner, range: *range });
                continue;
            }
            edges.entry(range.start).or_default().count(*owner, 1);
            edges.entry(range.end()).or_default().count(*owner, -1);
        }
        for (range, references) in &self.shared_runs {
            if !range.is_within(0, self.device_blocks) {
                report.add(Problem::OutsideDevice { owner: Owner::Shared, range: *range });
                continue;
            }
            edges.entry(range.start).or_default().recorded += i64::from(*references);
            edges.entry(range.end()).or_default().recorded -= i64::from(*references);
        }
        let mut now = Owned::default();
        let mut previous = 0;
        for (block, change) in edges {
            let range = BlockRange::new(previous, block - previous);
            match (now.extents, now.quarantine) {
                (0, 0) => {}
                (0, _) => self.owned.push((range, Owner::Quarantine)),
                _ => self.owned.push((range, Owner::Shared)),
            }
            let counted = now.extents + now.quarantine;
            if now.recorded != if counted > 1 { counted } else { 0 } {
                report.add(Problem::WrongReferences {
                    range,
                    counted: counted.try_into().unwrap_or(0),
                    recorded: now.recorded.try_into().unwrap_or(0),
                });
            }
            now.extents += change.extents;
            now.quarantine += change.quarantine;
            now.recorded += change.recorded;
            previous = block;
        }
    }

    /// Goes over all owners in block order and reports overlaps and gaps.
    fn sweep(&self, mut all: Vec<(BlockRange, Owner)>, report: &mut Report) {
        all.retain(|(range, owner)| {
            let inside = range.is_within(0, self.device_blocks);
            if !inside {
                report.add(Problem::OutsideDevice { owner: *owner, range: *range });
            }
            inside
        });
        all.sort();
        let mut end = 0;
        let mut last_owner = Owner::Superblock;
        for (range, owner) in all {
            if range.start > end {
                report.add(Problem::Leaked { range: BlockRange::new(end, range.start - end) });
            } else if range.start < end {
                let common = BlockRange::new(range.start, range.end().min(end) - range.start);
                report.add(Problem::OwnedTwice { range: common, first: last_owner, second: owner });
            }
            if owner == Owner::Free {
                report.free_blocks += range.count;
            } else {
                report.used_blocks += range.count;
            }
            if range.end() > end {
                end = range.end();
                last_owner = owner;
            }
        }
        if end < self.device_blocks {
            report.add(Problem::Leaked { range: BlockRange::new(end, self.device_blocks - end) });
        }
    }
}
