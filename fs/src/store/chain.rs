//! Where the metadata area lies: its blocks in order, in extents of the device and in gaps that nothing backs yet.
//!
//! The database takes pages near the end of its space long before those in the middle. With gaps only what it has
//! written takes room on the device, so a commit needs no more than it writes.

use super::BlockRange;

/// Start of a gap. No extent begins there, in the superblock.
const GAP: u64 = 0;

/// The pieces of the area, in order. What follows the last one is a gap without end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chain(Vec<BlockRange>);

/// Blocks of the area that nothing backs, from `first` up to `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Gap {
    pub(super) first: u64,
    /// `u64::MAX` for the last one.
    pub(super) end: u64,
    /// Device block after the one that backs the block before it, 0 if there is none.
    pub(super) near: u64,
}

impl Chain {
    /// Of pieces as they are recorded.
    pub fn new(pieces: Vec<BlockRange>) -> Chain {
        Chain(pieces)
    }

    /// As they are recorded: a gap starts at block 0.
    pub fn pieces(&self) -> &[BlockRange] {
        &self.0
    }

    /// What it has on the device.
    pub fn extents(&self) -> Vec<BlockRange> {
        self.0.iter().copied().filter(|piece| !is_gap(piece)).collect()
    }

    /// Blocks that it has on the device.
    pub fn backed_blocks(&self) -> u64 {
        self.extents().iter().map(|extent| extent.count).sum()
    }

    /// Blocks up to the last one that is backed.
    pub(super) fn covered_blocks(&self) -> u64 {
        self.0.iter().map(|piece| piece.count).sum()
    }

    /// The first gap in the blocks from `first` up to `end` of the area.
    pub(super) fn gap_in(&self, first: u64, end: u64) -> Option<Gap> {
        let (mut at, mut near) = (0, 0);
        for piece in &self.0 {
            let piece_end = at + piece.count;
            if is_gap(piece) && piece_end > first && at < end {
                return Some(Gap { first: at, end: piece_end, near });
            }
            near = if is_gap(piece) { 0 } else { piece.end() };
            at = piece_end;
        }
        (at < end).then_some(Gap { first: at, end: u64::MAX, near })
    }

    /// Backs the blocks from `first` on, which lie in one gap.
    pub(super) fn back(&mut self, first: u64, extents: &[BlockRange]) {
        let old = std::mem::take(&mut self.0);
        let end = first + extents.iter().map(|extent| extent.count).sum::<u64>();
        let mut at = 0;
        let mut placed = false;
        for piece in old {
            let piece_end = at + piece.count;
            if is_gap(&piece) && at <= first && end <= piece_end {
                self.push(BlockRange::new(GAP, first - at));
                extents.iter().for_each(|extent| self.push(*extent));
                self.push(BlockRange::new(GAP, piece_end - end));
                placed = true;
            } else {
                self.push(piece);
            }
            at = piece_end;
        }
        if !placed {
            self.push(BlockRange::new(GAP, first.saturating_sub(at)));
            extents.iter().for_each(|extent| self.push(*extent));
        }
    }

    fn push(&mut self, piece: BlockRange) {
        match self.0.last_mut() {
            _ if piece.count == 0 => {}
            Some(last) if is_gap(last) && is_gap(&piece) => last.count += piece.count,
            Some(last) if !is_gap(last) && last.end() == piece.start => last.count += piece.count,
            _ => self.0.push(piece),
        }
    }

    /// Blocks of the area from `first` up to `end`, in stretches: device block, if there is one, and count.
    pub(super) fn stretches(&self, first: u64, end: u64) -> Vec<(Option<u64>, u64)> {
        let mut stretches = Vec::new();
        let (mut at, mut wanted) = (0, first);
        for piece in &self.0 {
            let piece_end = at + piece.count;
            if wanted < end && wanted < piece_end {
                let count = piece_end.min(end) - wanted;
                stretches.push(((!is_gap(piece)).then(|| piece.start + (wanted - at)), count));
                wanted += count;
            }
            at = piece_end;
        }
        if wanted < end {
            stretches.push((None, end - wanted));
        }
        stretches
    }
}

fn is_gap(piece: &BlockRange) -> bool {
    piece.start == GAP
}

#[cfg(test)]
mod tests {
    use super::super::testdev::Rng;
    use super::*;

    #[test]
    fn agrees_with_a_table_of_blocks() {
        let mut rng = Rng::new(3);
        for _ in 0..200 {
            let (mut chain, mut table) = (Chain::default(), vec![None; 400]);
            for step in 0..30 {
                let first = rng.below(300);
                let Some(gap) = chain.gap_in(first, first + 1) else { continue };
                let count = (1 + rng.below(40)).min(gap.end - first);
                let device = 1000 * (step + 1);
                let halves = [BlockRange::new(device, count / 2), BlockRange::new(device + 500, count - count / 2)];
                let extents: Vec<BlockRange> = halves.into_iter().filter(|half| half.count > 0).collect();
                let blocks = extents.iter().flat_map(|extent| extent.start..extent.end());
                blocks.zip(first..).for_each(|(block, at)| table[at as usize] = Some(block));
                chain.back(first, &extents);
            }
            let backed = table.iter().flatten().count() as u64;
            assert_eq!(chain.backed_blocks(), backed);
            let covered = table.iter().rposition(Option::is_some).map_or(0, |last| last as u64 + 1);
            assert_eq!(chain.covered_blocks(), covered);
            let stretches = chain.stretches(0, 400).into_iter();
            let flat: Vec<Option<u64>> =
                stretches.flat_map(|(start, count)| (0..count).map(move |at| start.map(|start| start + at))).collect();
            assert_eq!(flat, table);
            let pieces = chain.pieces();
            assert!(pieces.windows(2).all(|two| !(is_gap(&two[0]) && is_gap(&two[1]))), "{pieces:?}");
            assert!(pieces.last().is_none_or(|last| !is_gap(last)), "{pieces:?}");
        }
    }
}
