//! The extents of one file in memory, and which of their records a change touched.

use std::collections::{BTreeMap, BTreeSet};

use crate::store::{BlockRange, Extent, extent_flags};

/// A stretch of a file, in blocks of 4096 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    /// First block of the stretch in the file.
    pub file_block: u64,
    /// Its length in blocks.
    pub blocks: u64,
    /// Where it lies; `None` for a hole. `len_blocks` equals `blocks`.
    pub extent: Option<Extent>,
}

impl Segment {
    /// The block after the last.
    pub(super) fn end(&self) -> u64 {
        self.file_block + self.blocks
    }

    /// First device block of the stretch if it holds data.
    pub(super) fn written(&self) -> Option<u64> {
        self.extent.filter(|extent| extent.flags & extent_flags::UNWRITTEN == 0).map(|extent| extent.device_block)
    }

    /// It holds data that only this file names.
    pub(super) fn is_private_data(&self) -> bool {
        self.extent.is_some_and(|extent| extent.flags == 0)
    }

    /// The part of the stretch inside `start..end`.
    fn clip(self, start: u64, end: u64) -> Segment {
        let first = self.file_block.max(start);
        let blocks = self.end().min(end) - first;
        let skipped = first - self.file_block;
        let extent = self.extent.map(|extent| Extent {
            device_block: extent.device_block + skipped,
            len_blocks: blocks,
            flags: extent.flags,
        });
        Segment { file_block: first, blocks, extent }
    }
}

/// First blocks of extents whose record changed.
pub(super) type Touched = BTreeSet<u64>;

/// Extents by their first file block; they never overlap.
#[derive(Debug, Default, Clone)]
pub(super) struct ExtentMap {
    extents: BTreeMap<u64, Extent>,
    blocks: u64,
}

impl ExtentMap {
    /// Adds one from its record. False when it overlaps another: the image is damaged.
    pub(super) fn load(&mut self, file_block: u64, extent: Extent) -> bool {
        let Some(end) = file_block.checked_add(extent.len_blocks) else {
            return false;
        };
        if self.segments(file_block, end).iter().any(|segment| segment.extent.is_some()) {
            return false;
        }
        self.blocks += extent.len_blocks;
        self.extents.insert(file_block, extent);
        true
    }

    /// Takes the extent out that begins at a file block, if one does.
    pub(super) fn forget(&mut self, file_block: u64) {
        if let Some(extent) = self.extents.remove(&file_block) {
            self.blocks -= extent.len_blocks;
        }
    }

    /// Blocks allocated.
    pub(super) fn blocks(&self) -> u64 {
        self.blocks
    }

    /// The extent that begins at a file block.
    pub(super) fn get(&self, file_block: u64) -> Option<&Extent> {
        self.extents.get(&file_block)
    }

    /// The file block from which on there are `count` extents; `None` when no more than that begin at or after `first`.
    pub(super) fn start_of_last(&self, first: u64, count: usize) -> Option<u64> {
        let mut last = self.extents.range(first..).rev().skip(count - 1);
        let (start, _) = last.next()?;
        last.next().map(|_| *start)
    }

    /// The block after the last allocated one.
    pub(super) fn end(&self) -> u64 {
        self.extents.last_key_value().map_or(0, |(start, extent)| start + extent.len_blocks)
    }

    /// The stretches that make up file blocks `start..end`, without gaps.
    pub(super) fn segments(&self, start: u64, end: u64) -> Vec<Segment> {
        let mut found = Vec::new();
        let mut at = start;
        let first = self.extents.range(..=start).next_back().map_or(start, |(first, _)| *first);
        for (&file_block, &extent) in self.extents.range(first..end.max(first)) {
            let whole = Segment { file_block, blocks: extent.len_blocks, extent: Some(extent) };
            if whole.end() <= at {
                continue;
            }
            if file_block > at {
                found.push(hole(at, file_block - at));
            }
            let part = whole.clip(start, end);
            at = part.end();
            found.push(part);
        }
        if at < end {
            found.push(hole(at, end - at));
        }
        found
    }

    /// The first block from `start` on that holds data, or the first that does not. `None`: no data follows.
    /// Looks at no more extents than it has to: a copy of a sparse file asks once for each of them.
    pub(super) fn seek(&self, start: u64, data: bool) -> Option<u64> {
        let mut at = start;
        let first = self.extents.range(..=start).next_back().map_or(start, |(first, _)| *first);
        for (&file_block, extent) in self.extents.range(first..) {
            let end = file_block + extent.len_blocks;
            if end <= at {
                continue;
            }
            let written = extent.flags & extent_flags::UNWRITTEN == 0;
            if written && data {
                return Some(at.max(file_block));
            }
            if !data && (file_block > at || !written) {
                return Some(at);
            }
            at = end;
        }
        if data { None } else { Some(at) }
    }

    /// Takes file blocks `start..end` out and returns what lay there.
    pub(super) fn remove(&mut self, start: u64, end: u64, touched: &mut Touched) -> Vec<Segment> {
        let removed: Vec<Segment> = self.segments(start, end).into_iter().filter(|segment| segment.extent.is_some()).collect();
        for segment in &removed {
            self.cut_out(segment, touched);
        }
        removed
    }

    fn cut_out(&mut self, segment: &Segment, touched: &mut Touched) {
        let Some((&first, &extent)) = self.extents.range(..=segment.file_block).next_back() else {
            return;
        };
        let head = segment.file_block - first;
        let tail = first + extent.len_blocks - segment.end();
        self.extents.remove(&first);
        touched.insert(first);
        if head > 0 {
            let kept = Extent { len_blocks: head, ..extent };
            self.extents.insert(first, kept);
        }
        if tail > 0 {
            let kept =
                Extent { device_block: extent.device_block + head + segment.blocks, len_blocks: tail, flags: extent.flags };
            self.extents.insert(segment.end(), kept);
            touched.insert(segment.end());
        }
        self.blocks -= segment.blocks;
    }

    /// Puts an extent where nothing is, joined with neighbours that it continues.
    pub(super) fn insert(&mut self, file_block: u64, extent: Extent, touched: &mut Touched) {
        self.blocks += extent.len_blocks;
        let mut first = file_block;
        let mut joined = extent;
        if let Some((&before, &left)) = self.extents.range(..file_block).next_back()
            && before + left.len_blocks == file_block
            && continues(&left, &joined)
        {
            self.extents.remove(&before);
            first = before;
            joined = Extent { len_blocks: left.len_blocks + joined.len_blocks, ..left };
        }
        let end = file_block + extent.len_blocks;
        if let Some(&right) = self.extents.get(&end)
            && continues(&joined, &right)
        {
            self.extents.remove(&end);
            touched.insert(end);
            joined.len_blocks += right.len_blocks;
        }
        self.extents.insert(first, joined);
        touched.insert(first);
    }

    /// Changes the flags of what is allocated in `start..end`.
    pub(super) fn set_flags(&mut self, start: u64, end: u64, flags: u32, touched: &mut Touched) {
        for segment in self.remove(start, end, touched) {
            if let Some(extent) = segment.extent {
                self.insert(segment.file_block, Extent { flags, ..extent }, touched);
            }
        }
    }
}

fn continues(left: &Extent, right: &Extent) -> bool {
    left.flags == right.flags && left.device_block + left.len_blocks == right.device_block
}

fn hole(file_block: u64, blocks: u64) -> Segment {
    Segment { file_block, blocks, extent: None }
}

/// The device blocks of removed stretches.
pub(super) fn device_ranges(segments: &[Segment]) -> impl Iterator<Item = BlockRange> + '_ {
    segments.iter().filter_map(|segment| segment.extent).map(|extent| BlockRange::new(extent.device_block, extent.len_blocks))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(device_block: u64, len_blocks: u64) -> Extent {
        Extent { device_block, len_blocks, flags: 0 }
    }

    #[test]
    fn neighbours_join_and_a_punch_splits() {
        let mut map = ExtentMap::default();
        let mut touched = Touched::new();
        map.insert(0, data(100, 4), &mut touched);
        map.insert(8, data(108, 4), &mut touched);
        map.insert(4, data(104, 4), &mut touched);
        assert_eq!(map.segments(0, 12).len(), 1);
        assert_eq!(map.blocks(), 12);
        let removed = map.remove(3, 5, &mut touched);
        assert_eq!(device_ranges(&removed).collect::<Vec<_>>(), [BlockRange::new(103, 2)]);
        let segments = map.segments(0, 20);
        let shape: Vec<_> = segments.iter().map(|s| (s.file_block, s.blocks, s.written())).collect();
        assert_eq!(shape, [(0, 3, Some(100)), (3, 2, None), (5, 7, Some(105)), (12, 8, None)]);
        assert_eq!(map.blocks(), 10);
    }

    #[test]
    fn flags_change_in_the_middle() {
        let mut map = ExtentMap::default();
        let mut touched = Touched::new();
        let unwritten = Extent { flags: extent_flags::UNWRITTEN, ..data(50, 10) };
        map.insert(0, unwritten, &mut touched);
        map.set_flags(4, 6, 0, &mut touched);
        let segments = map.segments(0, 10);
        assert_eq!(segments.len(), 3);
        assert_eq!(segments[1].written(), Some(54));
        map.set_flags(0, 10, 0, &mut touched);
        assert_eq!(map.segments(0, 10).len(), 1);
        assert_eq!(map.end(), 10);
    }

    #[test]
    fn segments_of_a_middle_part_have_no_leading_hole() {
        let mut map = ExtentMap::default();
        assert!(map.load(2, data(10, 8)));
        assert!(!map.load(5, data(90, 1)));
        assert_eq!(map.segments(4, 6), [Segment { file_block: 4, blocks: 2, extent: Some(data(12, 2)) }]);
        assert_eq!(map.segments(10, 12), [hole(10, 2)]);
    }

    #[test]
    fn seeking_skips_what_is_preallocated() {
        let mut map = ExtentMap::default();
        let mut touched = Touched::new();
        assert_eq!((map.seek(7, true), map.seek(7, false)), (None, Some(7)));
        map.insert(2, data(100, 2), &mut touched);
        map.insert(4, data(200, 2), &mut touched);
        map.insert(6, Extent { flags: extent_flags::UNWRITTEN, ..data(300, 2) }, &mut touched);
        map.insert(9, data(400, 1), &mut touched);
        let data_from: Vec<_> = (0..11).map(|block| map.seek(block, true)).collect();
        let expected = [2, 2, 2, 3, 4, 5, 9, 9, 9, 9].map(Some);
        assert_eq!((&data_from[..10], data_from[10]), (&expected[..], None));
        let holes: Vec<_> = (0..11).filter_map(|block| map.seek(block, false)).collect();
        assert_eq!(holes, [0, 1, 6, 6, 6, 6, 6, 7, 8, 10, 10]);
    }
}
