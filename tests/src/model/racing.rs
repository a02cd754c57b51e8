//! The CPU in a race with a map: a store that comes while the window is filled
//! already and not live yet. The moment is the one at which custody takes it.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use peerfs_fs::types::{Handle, Ino};
use peerfs_p2p::{Custody, MemoryCustody};

use super::pages::PageCache;

/// A store that is to come at the wrong moment.
#[derive(Debug, Clone)]
pub(super) struct Race {
    pub(super) ino: Ino,
    /// A cached handle open for writing.
    pub(super) handle: Handle,
    pub(super) offset: u64,
    pub(super) data: Vec<u8>,
}

/// Custody in this process, which races when told to.
pub(super) struct RacingCustody {
    inner: MemoryCustody,
    cache: Arc<PageCache>,
    armed: Mutex<Option<Race>>,
}

impl RacingCustody {
    pub(super) fn new(cache: Arc<PageCache>) -> Self {
        RacingCustody { inner: MemoryCustody::default(), cache, armed: Mutex::default() }
    }

    /// The next window that is taken into custody meets this store.
    pub(super) fn arm(&self, race: Race) {
        *self.lock() = Some(race);
    }

    /// The store will not come any more. False when it came.
    pub(super) fn disarm(&self) -> bool {
        self.lock().take().is_some()
    }

    /// Neither a window nor a sequence page is held.
    pub(super) fn is_empty(&self) -> bool {
        self.inner.windows() == 0 && self.inner.pages() == 0
    }

    fn lock(&self) -> MutexGuard<'_, Option<Race>> {
        self.armed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Custody for RacingCustody {
    fn hold(&self, id: u64, window: OwnedFd) -> io::Result<()> {
        let race = self.lock().take();
        if let Some(race) = race {
            let stored = self.cache.store(race.ino, race.handle, race.offset, &race.data, 0);
            stored.expect("a store to the page cache of a healthy volume");
        }
        self.inner.hold(id, window)
    }

    fn release(&self, id: u64) {
        self.inner.release(id);
    }

    fn hold_sequence(&self, id: u64, page: OwnedFd) -> io::Result<()> {
        self.inner.hold_sequence(id, page)
    }

    fn release_sequence(&self, id: u64) {
        self.inner.release_sequence(id);
    }
}
