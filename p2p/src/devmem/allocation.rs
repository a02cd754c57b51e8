//! One allocation: where its bytes are, and who is at work on it.
//!
//! Reads and writes by the CPU enter it side by side; a move, a growth and the
//! end have it alone. Neither holds its lock while working.

use std::fs::File;
use std::sync::{Arc, PoisonError};

use super::space::{Piece, join};
use super::{AllocationView, Owner, PoolError};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Condvar, Mutex, MutexGuard, lock};

/// Where the bytes are.
#[derive(Debug, Clone)]
pub(super) enum Home {
    /// On the device, in these pieces, sorted by their place in the allocation, without gaps.
    Device(Arc<Vec<Piece>>),
    /// In a memory file.
    Main(Arc<File>),
}

/// Size and home; they change together.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub bytes: u64,
    pub home: Home,
}

struct State {
    place: Place,
    /// Somebody has it alone.
    busy: bool,
    /// Reads and writes under way.
    transfers: u32,
    gone: bool,
}

pub(super) struct Allocation {
    pub(super) id: u64,
    pub(super) owner: Owner,
    state: Mutex<State>,
    changed: Condvar,
    used: AtomicU64,
}

impl Allocation {
    pub(super) fn new(id: u64, owner: Owner, place: Place) -> Arc<Allocation> {
        let state = State { place, busy: false, transfers: 0, gone: false };
        Arc::new(Allocation { id, owner, state: Mutex::new(state), changed: Condvar::new(), used: AtomicU64::new(0) })
    }

    pub(super) fn use_at(&self, moment: u64) {
        self.used.fetch_max(moment, Ordering::Relaxed);
    }

    pub(super) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// A snapshot.
    pub(super) fn place(&self) -> Result<Place, PoolError> {
        let state = lock(&self.state);
        if state.gone { Err(self.gone()) } else { Ok(state.place.clone()) }
    }

    /// Its size, if it is on the device and nobody has it alone.
    pub(super) fn movable_bytes(&self) -> Option<u64> {
        let state = lock(&self.state);
        let movable = !state.busy && !state.gone && matches!(state.place.home, Home::Device(_));
        movable.then_some(state.place.bytes)
    }

    pub(super) fn view(&self) -> Result<AllocationView, PoolError> {
        let place = self.place()?;
        let migrated = matches!(place.home, Home::Main(_));
        Ok(AllocationView { id: self.id, owner: self.owner, bytes: place.bytes, migrated })
    }

    /// Begins a read or write: the bytes stay where they are until the guard is dropped.
    pub(super) fn enter(self: &Arc<Self>) -> Result<Transfer, PoolError> {
        let mut state = self.wait(lock(&self.state), |state| state.busy);
        if state.gone {
            return Err(self.gone());
        }
        state.transfers += 1;
        Ok(Transfer { allocation: self.clone(), place: state.place.clone() })
    }

    /// Waits until nobody is at work on it.
    pub(super) fn alone(self: &Arc<Self>) -> Result<Alone, PoolError> {
        let state = self.wait(lock(&self.state), |state| state.busy);
        self.begin_alone(state)
    }

    /// As [`Allocation::alone`], unless somebody has it alone: so two who each have one never wait for each other's.
    pub(super) fn try_alone(self: &Arc<Self>) -> Option<Alone> {
        let state = lock(&self.state);
        if state.busy { None } else { self.begin_alone(state).ok() }
    }

    fn begin_alone(self: &Arc<Self>, mut state: MutexGuard<'_, State>) -> Result<Alone, PoolError> {
        if state.gone {
            return Err(self.gone());
        }
        state.busy = true;
        drop(self.wait(state, |state| state.transfers > 0));
        Ok(Alone(self.clone()))
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, until_not: impl FnMut(&mut State) -> bool) -> MutexGuard<'a, State> {
        self.changed.wait_while(state, until_not).unwrap_or_else(PoisonError::into_inner)
    }

    fn gone(&self) -> PoolError {
        PoolError::Gone { id: self.id }
    }
}

/// A read or write under way.
pub(super) struct Transfer {
    allocation: Arc<Allocation>,
    pub(super) place: Place,
}

impl Drop for Transfer {
    fn drop(&mut self) {
        lock(&self.allocation.state).transfers -= 1;
        self.allocation.changed.notify_all();
    }
}

/// Nobody else is at work on the allocation.
pub(super) struct Alone(Arc<Allocation>);

impl Alone {
    pub(super) fn allocation(&self) -> &Arc<Allocation> {
        &self.0
    }

    pub(super) fn place(&self) -> Place {
        lock(&self.0.state).place.clone()
    }

    pub(super) fn set_home(&self, home: Home) {
        lock(&self.0.state).place.home = home;
    }

    /// Appends pieces of the device.
    pub(super) fn append(&self, more: &[Piece], bytes: u64) {
        let mut state = lock(&self.0.state);
        if let Home::Device(pieces) = &mut state.place.home {
            let mut all = pieces.to_vec();
            more.iter().for_each(|piece| join(&mut all, *piece));
            *pieces = Arc::new(all);
        }
        state.place.bytes = bytes;
    }

    pub(super) fn set_bytes(&self, bytes: u64) {
        lock(&self.0.state).place.bytes = bytes;
    }

    /// Whoever waits for it, and comes later, finds it gone.
    pub(super) fn end(&self) {
        lock(&self.0.state).gone = true;
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        lock(&self.0.state).busy = false;
        self.0.changed.notify_all();
    }
}
