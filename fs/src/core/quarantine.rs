//! Blocks that files have given up while pins still reach them.
//!
//! Such a block goes to the store's quarantine instead of the free space, in the
//! transaction that takes it off its file. Which file it was taken from is kept in
//! memory only: no pin outlives the mount, and opening a volume ends the quarantine.
//!
//! The lock here is held from the question which blocks are pinned until the answer is
//! recorded, so that the end of a pin is never told before. It is taken with a content lock
//! held; [`crate::coherence::Coherence::pinned_blocks`] and the store are called under it, neither of which waits.

use std::collections::HashMap;
use std::sync::Mutex;

use peerfs_blockdev::BLOCK_BYTES;
use peerfs_p2p::Range;
use rangemap::RangeSet;

use super::{Core, Result};
use crate::store::{Batch, BlockRange};
use crate::sync::lock;
use crate::types::Ino;

/// Device blocks in quarantine, by the file they were taken from.
#[derive(Debug, Default)]
pub(super) struct Quarantine(Mutex<HashMap<Ino, RangeSet<u64>>>);

impl Core {
    /// Applies a batch that takes blocks off a file.
    pub(super) fn apply_freeing(&self, ino: Ino, mut batch: Batch) -> Result<u64> {
        let mut held = lock(&self.quarantine.0);
        let freed = batch.take_freed();
        let bytes: Vec<Range> = freed.iter().map(|range| Range::new(range.byte_offset(), range.byte_length())).collect();
        let pinned = blocks_of(&self.coherence().pinned_blocks(ino, &bytes));
        let mut kept = RangeSet::new();
        for range in freed {
            let whole = range.start..range.end();
            for part in pinned.gaps(&whole) {
                batch.free(BlockRange::new(part.start, part.end - part.start));
            }
            for part in pinned.overlapping(&whole) {
                let part = part.start.max(whole.start)..part.end.min(whole.end);
                batch.quarantine(BlockRange::new(part.start, part.end - part.start));
                kept.insert(part);
            }
        }
        let seq = self.volume.apply(batch)?;
        if !kept.is_empty() {
            held.entry(ino).or_default().extend(kept);
        }
        Ok(seq)
    }

    /// A pin of the file has ended: what of these device ranges (bytes) is in quarantine for it, and for no other
    /// file, becomes free.
    pub fn release_blocks(&self, ino: Ino, device_ranges: &[Range]) -> Result<()> {
        let mut held = lock(&self.quarantine.0);
        let Some(own) = held.get_mut(&ino) else {
            return Ok(());
        };
        let mut released = RangeSet::new();
        for asked in blocks_of(device_ranges).iter() {
            released.extend(
                own.overlapping(asked).map(|part| part.start.max(asked.start)..part.end.min(asked.end)).collect::<Vec<_>>(),
            );
        }
        released.iter().for_each(|part| own.remove(part.clone()));
        if own.is_empty() {
            held.remove(&ino);
        }
        let mut batch = Batch::new();
        for part in released.iter() {
            let others: RangeSet<u64> = held.values().flat_map(|other| other.overlapping(part).cloned()).collect();
            for free in others.gaps(part) {
                batch.release(BlockRange::new(free.start, free.end - free.start));
            }
        }
        if !batch.is_empty() {
            self.volume.apply(batch)?;
        }
        Ok(())
    }
}

/// Whole blocks that contain byte ranges of the device.
fn blocks_of(ranges: &[Range]) -> RangeSet<u64> {
    let blocks = |range: &Range| range.start / BLOCK_BYTES..range.end.div_ceil(BLOCK_BYTES);
    ranges.iter().filter(|range| !range.is_empty()).map(blocks).collect()
}
