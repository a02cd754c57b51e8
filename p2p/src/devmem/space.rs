//! Free space of the device: runs of blocks, found by place and by size.

use std::collections::{BTreeMap, BTreeSet};

use peerfs_blockdev::BLOCK_BYTES;

/// Large allocations start on this boundary, so that chunks of a mapping and huge pages coincide with them.
const HUGE_BYTES: u64 = 2 << 20;

/// Runs of about the right size that are looked at for an aligned place; the next ones are certain to have one.
const TRIES: usize = 16;

/// A stretch of an allocation on the device. All in bytes, multiples of blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    /// Offset in the allocation.
    pub at: u64,
    /// Offset on the device.
    pub offset: u64,
    pub length: u64,
}

/// Runs of free blocks; neighbours are always joined.
#[derive(Debug, Default)]
pub(super) struct Space {
    by_place: BTreeMap<u64, u64>,
    by_size: BTreeSet<(u64, u64)>,
    free_bytes: u64,
}

impl Space {
    /// All of a device is free.
    pub(super) fn new(bytes: u64) -> Space {
        let mut space = Space::default();
        space.put(0, bytes / BLOCK_BYTES * BLOCK_BYTES);
        space
    }

    pub(super) fn free_bytes(&self) -> u64 {
        self.free_bytes
    }

    /// Runs the free space is in.
    pub(super) fn runs(&self) -> u64 {
        self.by_place.len() as u64
    }

    /// Takes `bytes` (whole blocks) in as few pieces as there are, numbered from `at` in the allocation. `None`: there is
    /// not as much.
    pub(super) fn take(&mut self, bytes: u64, at: u64) -> Option<Vec<Piece>> {
        if bytes > self.free_bytes {
            return None;
        }
        let mut taken = Vec::new();
        if let Some(offset) = self.whole(bytes) {
            self.cut(offset, bytes);
            join(&mut taken, Piece { at, offset, length: bytes });
            return Some(taken);
        }
        let mut done = 0;
        while done < bytes {
            let (offset, length) = self.part(bytes - done)?;
            self.cut(offset, length);
            join(&mut taken, Piece { at: at + done, offset, length });
            done += length;
        }
        Some(taken)
    }

    pub(super) fn give(&mut self, pieces: &[Piece]) {
        for piece in pieces {
            self.put(piece.offset, piece.length);
        }
    }

    /// One place for all of it: for a large one an aligned place, for a small one the run that is least too large.
    fn whole(&self, bytes: u64) -> Option<u64> {
        let mut fitting = self.by_size.range((bytes, 0)..);
        if bytes < HUGE_BYTES {
            return fitting.next().map(|run| run.1);
        }
        let aligned = |run: &(u64, u64)| {
            let start = run.1.next_multiple_of(HUGE_BYTES);
            (start + bytes <= run.1 + run.0).then_some(start)
        };
        let near = fitting.by_ref().take(TRIES).find_map(aligned);
        near.or_else(|| self.by_size.range((bytes + HUGE_BYTES, 0)..).next().and_then(aligned))
    }

    /// A place for some of it: aligned and a multiple of huge pages as long as that is possible, else the largest run.
    fn part(&self, bytes: u64) -> Option<(u64, u64)> {
        let &(length, offset) = self.by_size.last()?;
        let start = offset.next_multiple_of(HUGE_BYTES);
        let huge = (offset + length).saturating_sub(start).min(bytes) / HUGE_BYTES * HUGE_BYTES;
        if huge > 0 { Some((start, huge)) } else { Some((offset, length.min(bytes))) }
    }

    /// Takes a stretch out of the run it lies in.
    fn cut(&mut self, offset: u64, length: u64) {
        let Some((&start, &run)) = self.by_place.range(..=offset).next_back() else {
            return;
        };
        self.drop_run(start, run);
        self.add_run(start, offset - start);
        self.add_run(offset + length, start + run - (offset + length));
    }

    /// Gives a stretch back and joins it with its neighbours.
    fn put(&mut self, offset: u64, length: u64) {
        let (mut start, mut end) = (offset, offset + length);
        if let Some((&before, &run)) = self.by_place.range(..offset).next_back()
            && before + run == offset
        {
            self.drop_run(before, run);
            start = before;
        }
        if let Some(&run) = self.by_place.get(&end) {
            self.drop_run(end, run);
            end += run;
        }
        self.add_run(start, end - start);
    }

    fn add_run(&mut self, offset: u64, length: u64) {
        if length > 0 {
            self.by_place.insert(offset, length);
            self.by_size.insert((length, offset));
            self.free_bytes += length;
        }
    }

    fn drop_run(&mut self, offset: u64, length: u64) {
        self.by_place.remove(&offset);
        self.by_size.remove(&(length, offset));
        self.free_bytes -= length;
    }
}

/// Appends a piece, as part of the last one where they are neighbours on the device.
pub(super) fn join(pieces: &mut Vec<Piece>, piece: Piece) {
    match pieces.last_mut() {
        Some(last) if last.offset + last.length == piece.offset && last.at + last.length == piece.at => {
            last.length += piece.length;
        }
        _ => pieces.push(piece),
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DEVICE_BYTES: u64 = 16 * HUGE_BYTES;

    #[test]
    fn large_ones_are_aligned_and_whole_small_ones_fill_gaps() {
        let mut space = Space::new(DEVICE_BYTES);
        let small = space.take(4096, 0).expect("room");
        let large = space.take(3 * HUGE_BYTES, 0).expect("room");
        assert_eq!(large, [Piece { at: 0, offset: HUGE_BYTES, length: 3 * HUGE_BYTES }]);
        let next = space.take(8192, 0).expect("room");
        assert_eq!(next, [Piece { at: 0, offset: 4096, length: 8192 }], "the gap before the aligned one");
        [small, large, next].iter().for_each(|pieces| space.give(pieces));
        assert_eq!((space.runs(), space.free_bytes()), (1, DEVICE_BYTES));
        assert_eq!(space.take(DEVICE_BYTES + 4096, 0), None);
    }

    #[test]
    fn scattered_space_is_used_to_the_last_block() {
        let mut space = Space::new(DEVICE_BYTES);
        let all: Vec<_> = (0..DEVICE_BYTES / 4096).map(|_| space.take(4096, 0).expect("room")).collect();
        assert_eq!(space.free_bytes(), 0);
        all.iter().step_by(2).for_each(|pieces| space.give(pieces));
        let pieces = space.take(DEVICE_BYTES / 2, 4096).expect("every other block");
        assert_eq!(pieces.len() as u64, DEVICE_BYTES / 8192);
        assert_eq!((pieces[0].at, space.free_bytes(), space.runs()), (4096, 0, 0));
    }

    proptest! {
        /// Pieces never overlap, cover what was asked, and come back completely.
        #[test]
        fn no_block_is_lost_or_given_twice(steps in prop::collection::vec((any::<bool>(), 1u64..1500), 1..200)) {
            let mut space = Space::new(DEVICE_BYTES);
            let mut held: Vec<Vec<Piece>> = Vec::new();
            for (take, number) in steps {
                if take || held.is_empty() {
                    let bytes = number * 4096;
                    let free = space.free_bytes();
                    let taken = space.take(bytes, 0);
                    prop_assert_eq!(taken.is_some(), bytes <= free);
                    if let Some(pieces) = taken {
                        let mut at = 0;
                        for piece in &pieces {
                            prop_assert_eq!(piece.at, at);
                            at += piece.length;
                        }
                        prop_assert_eq!(at, bytes);
                        held.push(pieces);
                    }
                } else {
                    let pieces = held.swap_remove(number as usize % held.len());
                    space.give(&pieces);
                }
                let mut stretches: Vec<(u64, u64)> = held.iter().flatten().map(|p| (p.offset, p.length)).collect();
                stretches.extend(space.by_place.iter().map(|(offset, length)| (*offset, *length)));
                stretches.sort_unstable();
                let mut end = 0;
                for (offset, length) in stretches {
                    prop_assert_eq!(offset, end);
                    end = offset + length;
                }
                prop_assert_eq!(end, DEVICE_BYTES);
            }
            held.iter().for_each(|pieces| space.give(pieces));
            prop_assert_eq!((space.runs(), space.free_bytes()), (1, DEVICE_BYTES));
        }
    }
}
