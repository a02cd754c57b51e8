//! Who holds a window, so that joining, leaving and acknowledging cost the same
//! however many there are.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::grant::{DataGrant, Grant};
use crate::clock::Gate;
use crate::sync::{Mutex, lock};

/// Holders of one window. Guarded by the object's lock; each grant knows its place in the list.
#[derive(Default)]
pub(super) struct Holders {
    grants: Vec<Arc<Grant>>,
    /// Of a window being revoked: who has not acknowledged yet, and whom to tell when that is nobody.
    waiting: Option<Waiting>,
}

struct Waiting {
    unacknowledged: usize,
    acks: Arc<Acks>,
    /// Which of the revoker's windows this is.
    index: usize,
}

/// Windows of one revocation that nobody uses any more, for the revoker who waits at `gate`.
#[derive(Default)]
pub(super) struct Acks {
    free: Mutex<Vec<usize>>,
    pub(super) gate: Arc<Gate>,
}

impl Acks {
    fn add(&self, index: usize) {
        lock(&self.free).push(index);
        self.gate.notify();
    }

    pub(super) fn is_empty(&self) -> bool {
        lock(&self.free).is_empty()
    }

    pub(super) fn take(&self) -> Vec<usize> {
        std::mem::take(&mut lock(&self.free))
    }
}

impl Holders {
    pub(super) fn add(&mut self, grant: Arc<Grant>) {
        if let Some(data) = grant.data() {
            data.place.store(self.grants.len() as u32, Ordering::Relaxed);
        }
        self.grants.push(grant);
    }

    /// Some holder is such.
    pub(super) fn any(&self, is_such: impl Fn(&Grant) -> bool) -> bool {
        self.grants.iter().any(|grant| is_such(grant))
    }

    /// Grants that hold the window; none once it is handed over to a revoker.
    pub(super) fn len(&self) -> usize {
        self.grants.len()
    }

    /// Nobody but this grant holds the window.
    pub(super) fn is_only(&self, grant: &Arc<Grant>) -> bool {
        matches!(self.grants.as_slice(), [only] if Arc::ptr_eq(only, grant))
    }

    /// Takes a holder out; false when it is none.
    pub(super) fn remove(&mut self, grant: &Arc<Grant>) -> bool {
        let Some(place) = grant.data().map(|data| data.place.load(Ordering::Relaxed) as usize) else {
            return false;
        };
        if !self.grants.get(place).is_some_and(|found| Arc::ptr_eq(found, grant)) {
            return false;
        }
        self.grants.swap_remove(place);
        if let Some(moved) = self.grants.get(place).and_then(|moved| moved.data()) {
            moved.place.store(place as u32, Ordering::Relaxed);
        }
        true
    }

    /// Hands the holders over to a revoker, who hears through `acks` when the last one has acknowledged. Those that
    /// have gone already are named in `gone`.
    pub(super) fn hand_over(&mut self, acks: &Arc<Acks>, index: usize, gone: Option<&Arc<Grant>>) -> Vec<Arc<Grant>> {
        let grants = std::mem::take(&mut self.grants);
        self.waiting = Some(Waiting { unacknowledged: grants.len(), acks: acks.clone(), index });
        match gone {
            Some(grant) => self.acknowledge(grant),
            None if grants.is_empty() => acks.add(index),
            None => {}
        }
        grants
    }

    /// One of the holders that were handed over has stopped.
    pub(super) fn acknowledge(&mut self, grant: &Grant) {
        let Some(waiting) = &mut self.waiting else { return };
        let first_time = |data: &DataGrant| !data.acknowledged.swap(true, Ordering::Relaxed);
        if grant.data().is_some_and(first_time) {
            waiting.unacknowledged -= 1;
            if waiting.unacknowledged == 0 {
                waiting.acks.add(waiting.index);
            }
        }
    }

    /// Holders that were handed over and did not acknowledge yet.
    pub(super) fn unacknowledged(&self) -> usize {
        self.waiting.as_ref().map_or(0, |waiting| waiting.unacknowledged)
    }
}
