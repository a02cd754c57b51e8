//! Allocating, growing and freeing.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use peerfs_abi::Trigger;
use peerfs_blockdev::BLOCK_BYTES;

use super::allocation::{Allocation, Alone, Home, Place};
use super::moves::memory_file;
use super::space::Piece;
use super::{AllocationView, Owner, Pool, PoolError};
use crate::api::SessionId;
use crate::sync::lock;
use crate::types::ObjectId;

/// How often room is made for a request while others take it away.
const ROUNDS: u32 = 8;

impl Pool {
    /// Allocates zeroed memory, `bytes` rounded up to blocks. Others move to main memory where the device is short of
    /// room; where even that is impossible the new one begins there.
    ///
    /// # Errors
    /// A limit, [`PoolError::Full`], or what the device answers.
    pub fn allocate(&self, owner: Owner, bytes: u64) -> Result<AllocationView, PoolError> {
        let bytes = self.whole_blocks(bytes)?;
        lock(&self.books).charge(owner.client, bytes, 1)?;
        let home = self.place(owner, bytes).inspect_err(|_| {
            lock(&self.books).discharge(owner.client, bytes, 1);
        })?;
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let allocation = Allocation::new(id, owner, Place { bytes, home });
        self.touch(&allocation);
        self.table.insert(id, allocation.clone());
        allocation.view()
    }

    /// Grows an allocation to `bytes`, rounded up to blocks; the new part is zeroed. It stays in place and mapped where
    /// the device has room, else it moves.
    ///
    /// # Errors
    /// [`PoolError::NotOwner`], [`PoolError::Shrinks`], a limit, [`PoolError::Full`], or what the device answers.
    pub fn grow(&self, session: SessionId, id: u64, bytes: u64) -> Result<AllocationView, PoolError> {
        let allocation = self.owned(session, id)?;
        let bytes = self.whole_blocks(bytes)?;
        let alone = allocation.alone()?;
        let old = alone.place().bytes;
        let more = bytes.checked_sub(old).ok_or(PoolError::Shrinks { id, bytes: old })?;
        if more == 0 {
            return allocation.view();
        }
        let client = allocation.owner.client;
        lock(&self.books).charge(client, more, 0)?;
        if let Err(error) = self.extend(&alone, old, bytes) {
            lock(&self.books).discharge(client, more, 0);
            return Err(error);
        }
        if let Some(engine) = self.engine() {
            engine.size_changed(ObjectId::device_memory(id), old, bytes);
        }
        allocation.view()
    }

    /// Ends an allocation: its mappings are revoked, its memory goes back to the device.
    ///
    /// # Errors
    /// [`PoolError::NotOwner`], [`PoolError::Gone`].
    pub fn free(&self, session: SessionId, id: u64) -> Result<(), PoolError> {
        let allocation = self.owned(session, id)?;
        self.end(&allocation, Trigger::Unlink)
    }

    /// Ends every allocation of a session that has ended.
    pub fn close_session(&self, session: SessionId) {
        let owned: Vec<Arc<Allocation>> =
            self.table.iter().filter(|entry| entry.value().owner.session == session).map(|entry| entry.value().clone()).collect();
        for allocation in owned {
            // One that is gone already was freed meanwhile.
            let _ = self.end(&allocation, Trigger::ClientGone);
        }
    }

    fn end(&self, allocation: &Arc<Allocation>, trigger: Trigger) -> Result<(), PoolError> {
        let alone = allocation.alone()?;
        // Out of the table first: who maps or opens it from now on finds nothing.
        self.table.remove(&allocation.id);
        alone.end();
        let closed = self.close(allocation.id, trigger);
        let Place { bytes, home } = alone.place();
        let client = allocation.owner.client;
        match home {
            Home::Device(pieces) => self.give_back_unpinned(allocation.id, &pieces),
            Home::Main(_) => lock(&self.books).give_main(client, bytes),
        }
        lock(&self.books).discharge(client, bytes, 1);
        drop(closed);
        Ok(())
    }

    fn owned(&self, session: SessionId, id: u64) -> Result<Arc<Allocation>, PoolError> {
        let allocation = self.find(id)?;
        if allocation.owner.session == session { Ok(allocation) } else { Err(PoolError::NotOwner { id }) }
    }

    fn whole_blocks(&self, bytes: u64) -> Result<u64, PoolError> {
        let device_bytes = self.device.info().size_bytes;
        let whole = bytes.checked_next_multiple_of(BLOCK_BYTES).filter(|whole| *whole > 0);
        let whole = whole.ok_or(PoolError::BadSize { bytes })?;
        if whole > device_bytes { Err(PoolError::TooLarge { bytes, device_bytes }) } else { Ok(whole) }
    }

    fn place(&self, owner: Owner, bytes: u64) -> Result<Home, PoolError> {
        if let Some(pieces) = self.room_on_device(bytes, 0)? {
            return Ok(Home::Device(Arc::new(pieces)));
        }
        if !lock(&self.books).take_main(owner.client, bytes) {
            return Err(PoolError::Full { bytes });
        }
        match memory_file(bytes) {
            Ok(file) => Ok(Home::Main(Arc::new(file))),
            Err(error) => {
                lock(&self.books).give_main(owner.client, bytes);
                Err(error)
            }
        }
    }

    /// Zeroed blocks, numbered from `at`; others make way. `None`: they cannot.
    fn room_on_device(&self, bytes: u64, at: u64) -> Result<Option<Vec<Piece>>, PoolError> {
        for _ in 0..ROUNDS {
            let taken = lock(&self.books).space.take(bytes, at);
            if let Some(pieces) = taken {
                if let Err(error) = self.zero(&pieces) {
                    self.give_back(&pieces);
                    return Err(error);
                }
                return Ok(Some(pieces));
            }
            if !self.make_room(bytes) {
                break;
            }
        }
        Ok(None)
    }

    fn extend(&self, alone: &Alone, old: u64, bytes: u64) -> Result<(), PoolError> {
        if matches!(alone.place().home, Home::Device(_)) {
            if let Some(pieces) = self.room_on_device(bytes - old, old)? {
                alone.append(&pieces, bytes);
                return Ok(());
            }
            if lock(&self.books).main_free() < bytes {
                return Err(PoolError::Full { bytes: bytes - old });
            }
            self.move_out(alone)?;
        }
        if !lock(&self.books).take_main(alone.allocation().owner.client, bytes - old) {
            return Err(PoolError::Full { bytes: bytes - old });
        }
        if let Home::Main(file) = alone.place().home
            && let Err(error) = file.set_len(bytes)
        {
            lock(&self.books).give_main(alone.allocation().owner.client, bytes - old);
            return Err(error.into());
        }
        alone.set_bytes(bytes);
        Ok(())
    }
}
