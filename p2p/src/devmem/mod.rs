//! Memory of a device, handed out at run time as memory is: allocated, grown, freed, and moved to main memory and
//! back when the device runs short. It is a second exporter beside files: importers map it with the same operations
//! and the same contexts, which makes device to device a mapping like any other. It has no names, no blocks for a
//! filesystem and no life beyond the process that asked for it, so it is not dressed up as a block device.
//!
//! An allocation ends when its owner frees it or the session it was made in ends, whichever is first. Nobody else's
//! handle or mapping keeps it: mappings are revoked first, and later calls answer that it is gone.
//!
//! Bytes are zero when memory is handed out, whoever had it before. Live direct mappings never stand in the way: a move
//! and a free revoke them, wait as every revocation does, and only then touch the memory.
//!
//! A pin is another matter: pinned memory does not move, and freed under a pin its blocks come back when the pin ends.
//!
//! Locks: the state of one allocation, then the books (free space and accounts), both for a few assignments. Whoever
//! copies or waits holds neither, but has marked the allocation as busy ([`allocation`]).

mod accounts;
mod allocation;
mod error;
mod exporter;
mod io;
mod lifecycle;
mod moves;
mod report;
mod space;

#[cfg(all(test, not(shuttle)))]
mod tests;

use std::sync::{Arc, OnceLock, Weak};

use peerfs_abi::Trigger;
use peerfs_blockdev::{Aperture, BlockDevice};

use crate::api::{Client, SessionId};
use crate::engine::{ClosedRange, Engine};
use crate::exporter::Exporter;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{DashMap, Mutex};
use crate::types::{ObjectId, Range};

use accounts::Books;
use allocation::Allocation;

pub use error::PoolError;
pub use report::{AllocationRecord, PoolRecord, UsageRecord};

/// Bounds of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolConfig {
    /// Main memory for allocations that were moved off the device, bytes.
    pub main_bytes_max: u64,
    /// What one user may hold, wherever it is, bytes.
    pub user_bytes_max: u64,
    /// What one process may hold, wherever it is, bytes.
    pub process_bytes_max: u64,
    /// Allocations of one user.
    pub user_allocations_max: u64,
}

impl PoolConfig {
    /// Allocations of one user, if nothing else is said.
    pub const USER_ALLOCATIONS_MAX: u64 = 4096;
}

/// Whose an allocation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// The allocation ends with it.
    pub session: SessionId,
    /// Process and user it is charged to.
    pub client: Client,
    /// Group of the device file.
    pub gid: u32,
    /// Permission bits of the device file.
    pub mode: u32,
}

/// What anybody may know of an allocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AllocationView {
    /// Its number; never used again by this pool.
    pub id: u64,
    /// Whose it is.
    pub owner: Owner,
    /// Size, a multiple of 4096 bytes.
    pub bytes: u64,
    /// It is in main memory at present.
    pub migrated: bool,
}

/// The memory of one device.
pub struct Pool {
    config: PoolConfig,
    device: Arc<dyn BlockDevice>,
    aperture: Option<Arc<dyn Aperture>>,
    engine: OnceLock<Weak<Engine>>,
    table: DashMap<u64, Arc<Allocation>>,
    books: Mutex<Books>,
    next_id: AtomicU64,
    /// Counts uses; what was used last has the largest number.
    uses: AtomicU64,
    moved_out: AtomicU64,
    moved_in: AtomicU64,
}

impl Pool {
    /// Hands out all of `device`, which is reached through `aperture` if there is one.
    pub fn new(device: Arc<dyn BlockDevice>, aperture: Option<Arc<dyn Aperture>>, config: PoolConfig) -> Arc<Pool> {
        let device_bytes = device.info().size_bytes;
        Arc::new(Pool {
            books: Mutex::new(Books::new(device_bytes, config)),
            config,
            device,
            aperture,
            engine: OnceLock::new(),
            table: DashMap::new(),
            next_id: AtomicU64::new(1),
            uses: AtomicU64::new(0),
            moved_out: AtomicU64::new(0),
            moved_in: AtomicU64::new(0),
        })
    }

    /// Lets importers map the memory through an engine. The engine does not keep the pool alive.
    ///
    /// # Errors
    /// The thread for the device's events could not be started.
    pub fn attach(self: &Arc<Self>, engine: &Arc<Engine>) -> std::io::Result<()> {
        let exporter: Arc<dyn Exporter> = self.clone();
        self.engine.get_or_init(|| Arc::downgrade(engine));
        engine.attach_device_memory(Arc::downgrade(&exporter), self.aperture.clone(), &*self.device)
    }

    /// Looks an allocation up.
    ///
    /// # Errors
    /// [`PoolError::Gone`].
    pub fn view(&self, id: u64) -> Result<AllocationView, PoolError> {
        self.find(id)?.view()
    }

    fn find(&self, id: u64) -> Result<Arc<Allocation>, PoolError> {
        Ok(self.table.get(&id).ok_or(PoolError::Gone { id })?.value().clone())
    }

    fn touch(&self, allocation: &Allocation) {
        allocation.use_at(self.uses.fetch_add(1, Ordering::Relaxed));
    }

    fn engine(&self) -> Option<Arc<Engine>> {
        self.engine.get().and_then(Weak::upgrade)
    }

    /// Ends all direct mappings of an allocation and keeps it closed to new ones. Without an engine there are none.
    fn close(&self, id: u64, trigger: Trigger) -> Option<ClosedRange> {
        Some(self.engine()?.close_range(ObjectId::device_memory(id), Range::ALL, trigger))
    }

    fn is_pinned(&self, id: u64) -> bool {
        self.engine().is_some_and(|engine| engine.is_pinned(ObjectId::device_memory(id)))
    }

    fn is_mapped(&self, id: u64) -> bool {
        self.engine().is_some_and(|engine| engine.is_mapped(Some(ObjectId::device_memory(id))))
    }
}
