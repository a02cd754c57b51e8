//! Which grants a session holds, so that a revocation finds them.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::grant::Grant;

/// Locks; a panic elsewhere leaves our state consistent, as every change of it is complete before anything can panic.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Grants by id. Two mappings may share a grant; each has an object of its own.
#[derive(Default)]
pub(crate) struct Registry {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    grants: HashMap<u64, Vec<Weak<Grant>>>,
    maps_in_flight: usize,
    /// Revoked while a map was on its way whose answer may still name them.
    early: HashSet<u64>,
}

/// While it lives, revocations of unknown grants are remembered.
pub(crate) struct MapInFlight<'r>(&'r Registry);

impl Registry {
    /// Call before asking the server for grants.
    pub(crate) fn begin_map(&self) -> MapInFlight<'_> {
        lock(&self.inner).maps_in_flight += 1;
        MapInFlight(self)
    }

    /// Makes a grant known; `false` when it was revoked before.
    pub(crate) fn add(&self, grant: &Arc<Grant>) -> bool {
        let mut inner = lock(&self.inner);
        if inner.early.contains(&grant.id()) {
            return false;
        }
        let holders = inner.grants.entry(grant.id()).or_default();
        holders.push(Arc::downgrade(grant));
        true
    }

    /// Takes out everything that uses a grant: it is being revoked.
    pub(crate) fn take(&self, grant_id: u64) -> Vec<Arc<Grant>> {
        let mut inner = lock(&self.inner);
        if inner.maps_in_flight > 0 {
            inner.early.insert(grant_id);
        }
        let holders = inner.grants.remove(&grant_id).unwrap_or_default();
        holders.iter().filter_map(Weak::upgrade).collect()
    }

    /// What uses a grant.
    pub(crate) fn holders(&self, grant_id: u64) -> Vec<Arc<Grant>> {
        let inner = lock(&self.inner);
        let holders = inner.grants.get(&grant_id);
        holders.into_iter().flatten().filter_map(Weak::upgrade).collect()
    }

    /// Forgets a grant object that is no longer used.
    pub(crate) fn remove(&self, grant: &Arc<Grant>) {
        let mut inner = lock(&self.inner);
        if let Some(holders) = inner.grants.get_mut(&grant.id()) {
            holders.retain(|held| !std::ptr::eq(held.as_ptr(), Arc::as_ptr(grant)));
            if holders.is_empty() {
                inner.grants.remove(&grant.id());
            }
        }
    }
}

impl Drop for MapInFlight<'_> {
    fn drop(&mut self) {
        let mut inner = lock(&self.0.inner);
        inner.maps_in_flight -= 1;
        if inner.maps_in_flight == 0 {
            inner.early.clear();
        }
    }
}
