//! Between the device and main memory, when the device runs short.
//!
//! Out: allocations that no importer maps first, then the others, each the least recently used first. In: at the next
//! map, if the device has room without moving somebody else, so two allocations never push each other to and fro.

use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::sys::memfd::{MFdFlags, memfd_create};
use peerfs_abi::Trigger;

use super::allocation::{Allocation, Alone, Home};
use super::space::Piece;
use super::{Pool, PoolError};
use crate::sync::lock;
use crate::types::{ObjectId, Range};

impl Pool {
    /// Moves others to main memory until `bytes` are free on the device, as far as nobody is at work on them. False: not
    /// enough could be moved; nothing was, if that could be told before.
    pub(super) fn make_room(&self, bytes: u64) -> bool {
        let (free, main_free) = {
            let books = lock(&self.books);
            (books.space.free_bytes(), books.main_free())
        };
        let Some(victims) = self.victims(bytes.saturating_sub(free), main_free) else {
            return false;
        };
        for victim in victims {
            if lock(&self.books).space.free_bytes() >= bytes {
                break;
            }
            if let Some(alone) = victim.try_alone()
                && let Err(error) = self.move_out(&alone)
            {
                tracing::warn!("device memory {} stays on the device: {error}", victim.id);
            }
        }
        lock(&self.books).space.free_bytes() >= bytes
    }

    /// Allocations on the device worth at least `bytes`, and few enough to fit into main memory.
    fn victims(&self, bytes: u64, main_free: u64) -> Option<Vec<Arc<Allocation>>> {
        let mut candidates: Vec<(bool, u64, u64, Arc<Allocation>)> = Vec::new();
        for entry in self.table.iter() {
            let allocation = entry.value();
            if let Some(bytes) = allocation.movable_bytes().filter(|_| !self.is_pinned(allocation.id)) {
                candidates.push((false, allocation.used(), bytes, allocation.clone()));
            }
        }
        for candidate in &mut candidates {
            candidate.0 = self.is_mapped(candidate.3.id);
        }
        candidates.sort_unstable_by_key(|candidate| (candidate.0, candidate.1));
        let (mut found, mut main_left) = (0, main_free);
        let mut victims = Vec::new();
        for (_, _, size, allocation) in candidates {
            if found >= bytes {
                break;
            }
            if size <= main_left {
                main_left -= size;
                found += size;
                victims.push(allocation);
            }
        }
        (found >= bytes).then_some(victims)
    }

    /// Moves an allocation to main memory, after its direct mappings have ended.
    pub(super) fn move_out(&self, alone: &Alone) -> Result<(), PoolError> {
        let allocation = alone.allocation();
        let place = alone.place();
        let Home::Device(pieces) = place.home else {
            return Ok(());
        };
        let client = allocation.owner.client;
        if !lock(&self.books).take_main(client, place.bytes) {
            return Err(PoolError::Full { bytes: place.bytes });
        }
        let moved = memory_file(place.bytes).and_then(|file| {
            let closed = self.close(allocation.id, Trigger::Relocation);
            if self.is_pinned(allocation.id) {
                return Err(PoolError::Pinned { id: allocation.id });
            }
            self.copy_to_main(&pieces, place.bytes, &file)?;
            alone.set_home(Home::Main(Arc::new(file)));
            // Open again only now: a map that comes in sees the new place.
            drop(closed);
            Ok(())
        });
        if let Err(error) = moved {
            lock(&self.books).give_main(client, place.bytes);
            return Err(error);
        }
        self.give_back(&pieces);
        self.moved_out.fetch_add(1, Ordering::Relaxed);
        tracing::debug!("device memory {} moved to main memory ({} bytes)", allocation.id, place.bytes);
        Ok(())
    }

    /// Moves an allocation back, if the device has room. A device that fails leaves it where it is. Nothing maps it
    /// directly meanwhile.
    pub(super) fn move_in(&self, alone: &Alone) {
        let allocation = alone.allocation();
        let place = alone.place();
        let Home::Main(file) = place.home else {
            return;
        };
        let Some(pieces) = lock(&self.books).space.take(place.bytes, 0) else {
            return;
        };
        if let Err(error) = self.copy_to_device(&file, &pieces, place.bytes) {
            tracing::warn!("device memory {} stays in main memory: {error}", allocation.id);
            self.give_back(&pieces);
            return;
        }
        alone.set_home(Home::Device(Arc::new(pieces)));
        lock(&self.books).give_main(allocation.owner.client, place.bytes);
        self.moved_in.fetch_add(1, Ordering::Relaxed);
        tracing::debug!("device memory {} moved back to the device ({} bytes)", allocation.id, place.bytes);
    }

    /// Returns the blocks of an allocation that ends. Those that a pin reaches wait for its end.
    pub(super) fn give_back_unpinned(&self, id: u64, pieces: &[Piece]) {
        let all: Vec<Range> = pieces.iter().map(|piece| Range::new(piece.offset, piece.length)).collect();
        let mut owed = self.engine().map_or_else(Vec::new, |engine| engine.orphan_pinned(ObjectId::device_memory(id), &all));
        owed.sort_unstable_by_key(|range| range.start);
        let mut free = Vec::new();
        let mut quarantined = 0u64;
        for range in all {
            let mut at = range.start;
            for pinned in owed.iter().map(|owed| owed.intersect(range)).filter(|pinned| !pinned.is_empty()) {
                free.push(Range { start: at, end: pinned.start });
                quarantined += pinned.end.saturating_sub(pinned.start.max(at));
                at = at.max(pinned.end);
            }
            free.push(Range { start: at, end: range.end });
        }
        lock(&self.books).quarantined += quarantined.cast_signed();
        self.give_back(&as_pieces(&free));
    }

    /// A pin that outlived its allocation has ended.
    pub(super) fn end_quarantine(&self, ranges: &[Range]) {
        let bytes: u64 = ranges.iter().map(|range| range.length()).sum();
        self.give_back(&as_pieces(ranges));
        lock(&self.books).quarantined -= bytes.cast_signed();
    }

    /// Returns blocks of the device. They are zeroed again before anybody else gets them; discarding only gives what
    /// backs them to others sooner.
    pub(super) fn give_back(&self, pieces: &[Piece]) {
        for piece in pieces {
            if let Err(error) = self.device.discard(piece.offset, piece.length) {
                tracing::debug!("freed device memory was not discarded: {error}");
            }
        }
        lock(&self.books).space.give(pieces);
    }
}

fn as_pieces(ranges: &[Range]) -> Vec<Piece> {
    let whole = ranges.iter().filter(|range| !range.is_empty());
    whole.map(|range| Piece { at: 0, offset: range.start, length: range.length() }).collect()
}

/// Zeros in memory that only this process reaches.
pub(super) fn memory_file(bytes: u64) -> Result<File, PoolError> {
    let fd = memfd_create("peerfs-devmem", MFdFlags::MFD_CLOEXEC).map_err(std::io::Error::from)?;
    let file = File::from(fd);
    file.set_permissions(Permissions::from_mode(0o0))?;
    file.set_len(bytes)?;
    Ok(file)
}
