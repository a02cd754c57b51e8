//! Telling the device which blocks hold nothing: on request, and at every commit where a mount asks for it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};

use peerfs_blockdev::{BLOCK_BYTES, BlockDevice};

use super::alloc::{Allocation, Allocator};
use super::kv::CommitSeq;
use super::volume::Volume;
use super::{BlockRange, StoreError};
use crate::sync::{read, write};

/// Blocks taken at a time, and never more than a quarter: those who find no space wait for them.
const AT_ONCE: u64 = 1024;

/// What is being discarded, and when.
#[derive(Debug)]
pub(super) struct Discarding {
    at_commit: AtomicBool,
    /// Shared while free blocks are discarded, which are not available then.
    turn: RwLock<()>,
}

impl Discarding {
    pub(super) fn new(at_commit: bool) -> Self {
        Discarding { at_commit: AtomicBool::new(at_commit), turn: RwLock::default() }
    }

    /// What a commit freed is discarded.
    pub(super) fn at_commit(&self) -> bool {
        self.at_commit.load(Ordering::Relaxed)
    }

    /// Until what is being discarded now is available.
    pub(super) fn wait(&self) {
        drop(write(&self.turn));
    }
}

impl Volume {
    /// Discards the free blocks of a range that are in runs of `least_blocks` or more. Returns how many that were.
    pub fn trim(&self, range: BlockRange, least_blocks: u64) -> Result<u64, StoreError> {
        let (mut at, mut trimmed) = (range.start, 0);
        while at < range.end() {
            let rest = BlockRange::new(at, range.end() - at);
            let _turn = read(&self.discarding.turn);
            if self.closed.load(Ordering::Acquire) {
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
        let _turn = read(&self.discarding.turn);
        for range in self.allocator().take_committed(seq) {
            if self.discarding.at_commit()
                && let Err(error) = discard(&**self.device(), range)
            {
                tracing::warn!(%error, "freed blocks are not discarded any more");
                self.discarding.at_commit.store(false, Ordering::Relaxed);
            }
            self.allocator().release(range);
        }
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
