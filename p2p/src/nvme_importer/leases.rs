//! The grants of one copy and the leases over their windows.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};

use peerfs_blockdev::Window;
use peerfs_blockdev::nvme::{DmaEngine, Lease, LeaseError, PrivateQueue};

use crate::types::GrantId;

/// Shared with whoever hears of revocations.
#[derive(Default)]
pub(super) struct Leases(std::sync::Mutex<HashMap<GrantId, Entry>>);

enum Entry {
    Live(Arc<Lease>),
    /// A revocation has begun.
    Revoked,
}

impl Leases {
    /// The lease over a grant's window, made if there is none yet.
    pub(super) fn of(
        &self,
        grant: GrantId,
        window: impl FnOnce() -> Result<Arc<dyn Window>, LeaseError>,
        engine: &DmaEngine,
        queue: &Arc<PrivateQueue>,
        writable: bool,
    ) -> Result<Arc<Lease>, LeaseError> {
        let mut leases = self.lock();
        match leases.get(&grant) {
            Some(Entry::Live(lease)) => return Ok(lease.clone()),
            Some(Entry::Revoked) => return Err(LeaseError::Revoked),
            None => {}
        }
        let lease = engine.lease(queue, window()?, writable)?;
        leases.insert(grant, Entry::Live(lease.clone()));
        Ok(lease)
    }

    /// A grant is being revoked: nothing more is sent for it. `true`: its window is out of reach already.
    pub(super) fn revoke(&self, grant: GrantId) -> bool {
        let entry = self.lock().insert(grant, Entry::Revoked);
        match entry {
            Some(Entry::Live(lease)) => lease.stop_soon(),
            Some(Entry::Revoked) | None => true,
        }
    }

    /// Ends those whose queue has ended: what is mapped again gets a lease with another queue.
    pub(super) fn end_live(&self) {
        self.lock().retain(|_, entry| match entry {
            Entry::Live(lease) => {
                lease.stop();
                false
            }
            Entry::Revoked => true,
        });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<GrantId, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
