//! Space for files that grow: blocks set aside beyond the end, so that several files
//! written at the same time do not interleave on the device.
//!
//! A reservation exists in memory only. It goes back when the last handle is closed,
//! when space runs short, and in a crash.

use super::Core;
use super::inode::{Content, Inode};
use crate::error::Result;
use crate::store::{AllocRequest, Allocation, HUGE_BLOCKS};

/// Most blocks set aside for one file (8 MiB).
const MOST_AHEAD_BLOCKS: u64 = 4 * HUGE_BLOCKS;
/// A file sets aside at most this fraction of the free space.
const SHARE_OF_FREE: u64 = 32;

/// Blocks set aside.
#[derive(Debug)]
pub(super) struct Reservation {
    blocks: Allocation,
    /// The file block they are meant for.
    file_block: u64,
}

/// Where blocks are needed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Want {
    /// First file block.
    pub file_block: u64,
    /// Number of blocks.
    pub blocks: u64,
    /// The device block after the file's previous extent.
    pub near: Option<u64>,
    /// The blocks follow everything that the file has, and more of the same is to be expected.
    pub growing: bool,
}

impl Core {
    /// Takes blocks, from the file's reservation if they continue it. All of them or none.
    pub(super) fn take_blocks(&self, content: &mut Content, want: Want) -> Result<Vec<Allocation>> {
        let mut taken = Vec::new();
        let mut left = want;
        let reservation = match want.growing {
            true => content.reservation.take(),
            false => None,
        };
        if let Some(mut reservation) = reservation
            && reservation.file_block == want.file_block
        {
            let front = reservation.blocks.split_front(want.blocks);
            let got = count(&front);
            left.file_block += got;
            left.blocks -= got;
            left.near = front.pieces().last().map(|piece| piece.end());
            taken.push(front);
            if left.blocks == 0 {
                reservation.file_block = left.file_block;
                content.reservation = (count(&reservation.blocks) > 0).then_some(reservation);
                return Ok(taken);
            }
        }
        taken.push(self.take_fresh(content, left)?);
        Ok(taken)
    }

    fn take_fresh(&self, content: &mut Content, want: Want) -> Result<Allocation> {
        let ahead = match want.growing {
            true => want.file_block.min(MOST_AHEAD_BLOCKS).min(self.volume.space().free_for_data / SHARE_OF_FREE),
            false => 0,
        };
        let request = |blocks| AllocRequest { blocks, near: want.near };
        if ahead > 0
            && let Ok(mut blocks) = self.volume.allocate(request(want.blocks + ahead))
        {
            let front = blocks.split_front(want.blocks);
            content.reservation = Some(Reservation { blocks, file_block: want.file_block + want.blocks });
            return Ok(front);
        }
        Ok(self.volume.allocate(request(want.blocks))?)
    }

    /// Gives back what the file set aside.
    pub(super) fn drop_reservation(&self, inode: &Inode) {
        if inode.is_regular() && inode.share().reservation.is_some() {
            inode.exclude().reservation = None;
        }
    }

    /// Space is short: gives back what files set aside, frees nameless files, commits. No lock is held.
    pub(super) fn reclaim(&self) {
        for ino in self.cache.numbers() {
            if let Some(inode) = self.cache.peek(ino) {
                self.drop_reservation(&inode);
            }
        }
        self.reap_queued();
        // An error shows again in the operation that asked, or has made the volume read-only.
        let _ = self.commit();
    }
}

fn count(allocation: &Allocation) -> u64 {
    allocation.pieces().iter().map(|piece| piece.count).sum()
}
