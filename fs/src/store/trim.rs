//! Telling the device which blocks hold nothing: on request, and at every commit where a mount asks for it.

use std::sync::Arc;

use peerfs_blockdev::{BLOCK_BYTES, BlockDevice};

use super::alloc::{Allocation, Allocator};
use super::kv::CommitSeq;
use super::volume::Volume;
use super::{BlockRange, StoreError};
use crate::sync::{read, write};

/// Blocks taken at a time, and never more than a quarter: those who find no space wait for them.
const AT_ONCE: u64 = 1024;

impl Volume {
    /// Discards the free blocks of a range that are in runs of `least_blocks` or more. Returns how many that were.
    pub fn trim(&self, range: BlockRange, least_blocks: u64) -> Result<u64, StoreError> {
        let (mut at, mut trimmed) = (range.start, 0);
        while at < range.end() {
            let rest = BlockRange::new(at, range.end() - at);
            let _turn = read(self.discarding());
            if self.is_closed() {
                break;
            }
            let Some(taken) = self.allocator().take_free(rest, least_blocks, AT_ONCE) else { break };
            for piece in taken.pieces() {
                discard(&**self.device(), *piece)?;
                trimmed += piece.count;
                at = piece.end();
            }
        }
        Ok(trimmed)
    }

    /// Makes what a durable commit freed available, when the device has been told.
    pub(super) fn discard_committed(&self, seq: CommitSeq) {
        let _turn = read(self.discarding());
        for range in self.allocator().take_committed(seq) {
            if self.discards()
                && let Err(error) = discard(&**self.device(), range)
            {
                tracing::warn!(%error, "freed blocks are not discarded any more");
                self.stop_discarding();
            }
            self.allocator().release(range);
        }
    }

    /// Until what is being discarded now is available.
    pub(super) fn await_discards(&self) {
        drop(write(self.discarding()));
    }
}

impl Allocator {
    /// Takes the first free blocks of a range that are in a run of `least` or more, at most `most` of them.
    fn take_free(self: &Arc<Self>, range: BlockRange, least: u64, most: u64) -> Option<Allocation> {
        self.take_where(|available| {
            let run = available.runs_in(range).find(|run| run.count >= least)?;
            let start = run.start.max(range.start);
            let most = most.min(available.total() / 4).max(1);
            Some(BlockRange::new(start, (run.end().min(range.end()) - start).min(most)))
        })
    }
}

fn discard(device: &dyn BlockDevice, range: BlockRange) -> Result<(), StoreError> {
    Ok(device.discard(range.start * BLOCK_BYTES, range.count * BLOCK_BYTES)?)
}
