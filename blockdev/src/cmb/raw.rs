//! Requests that go past the windows, so that a new window can wait for them.
//!
//! A write that found its blocks in no window is entered here before the index
//! is unlocked and leaves when the device has finished it; so does a read where a
//! new window takes the blocks' home away. A window that has been put into the
//! index therefore finds here every request it must not overtake. It finishes
//! them itself rather than wait for their owners: an owner may be waiting for
//! this very window before it gets round to its own tickets.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::{DeviceError, IoBuf, Run, Ticket};

type Done = Result<Option<IoBuf>, DeviceError>;

#[derive(Debug, Default)]
pub(super) struct RawRequests {
    list: Mutex<List>,
}

#[derive(Debug, Default)]
struct List {
    next_id: u64,
    requests: BTreeMap<u64, Entry>,
}

#[derive(Debug, Clone)]
struct Entry {
    offset: u64,
    length: u64,
    cell: Arc<Cell>,
}

#[derive(Debug, Default)]
struct Cell {
    state: Mutex<State>,
    started: Condvar,
}

#[derive(Debug, Default)]
enum State {
    /// Entered, not yet with the device.
    #[default]
    Starting,
    Flying(Ticket),
    Done(Done),
    /// Done, and the owner has the result.
    Taken,
}

/// One request, entered. Leaves the list when dropped, which waits for its end.
#[derive(Debug)]
pub(super) struct RawRequest<S: AsRef<RawRequests>> {
    owner: S,
    id: u64,
    cell: Arc<Cell>,
}

impl RawRequests {
    /// Enters a request on a range. Call with the index locked.
    pub(super) fn enter<S: AsRef<RawRequests>>(owner: S, offset: u64, length: u64) -> RawRequest<S> {
        let cell = Arc::new(Cell::default());
        let mut list = lock(&owner.as_ref().list);
        let id = list.next_id;
        list.next_id += 1;
        let entry = Entry { offset, length, cell: cell.clone() };
        list.requests.insert(id, entry);
        drop(list);
        RawRequest { owner, id, cell }
    }

    /// Returns when every request entered so far that touches the runs is done.
    pub(super) fn settle(&self, runs: &[Run]) {
        let touches = |entry: &&Entry| {
            runs.iter()
                .any(|run| entry.offset < run.device_offset + run.length && run.device_offset < entry.offset + entry.length)
        };
        let entries: Vec<_> = lock(&self.list).requests.values().filter(touches).cloned().collect();
        for entry in entries {
            entry.cell.settle();
        }
    }
}

impl Cell {
    fn settle(&self) {
        let mut state = lock(&self.state);
        while matches!(*state, State::Starting) {
            state = self.started.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        // The lock is held meanwhile: the owner could only wait for the same thing.
        *state = match std::mem::replace(&mut *state, State::Taken) {
            State::Flying(ticket) => State::Done(ticket.wait()),
            settled => settled,
        };
    }

    fn put(&self, state: State) {
        *lock(&self.state) = state;
        self.started.notify_all();
    }
}

impl<S: AsRef<RawRequests>> RawRequest<S> {
    /// The device has it.
    pub(super) fn started(&self, ticket: Ticket) {
        self.cell.put(State::Flying(ticket));
    }

    /// Its result; waits for it.
    pub(super) fn wait(self) -> Done {
        self.cell.settle();
        match std::mem::replace(&mut *lock(&self.cell.state), State::Taken) {
            State::Done(done) => done,
            _ => Ok(None),
        }
    }
}

impl<S: AsRef<RawRequests>> Drop for RawRequest<S> {
    fn drop(&mut self) {
        let state = std::mem::replace(&mut *lock(&self.cell.state), State::Starting);
        if let State::Flying(ticket) = state {
            // A drop of the ticket waits and reports.
            drop(ticket);
        }
        self.cell.put(State::Taken);
        lock(&self.owner.as_ref().list).requests.remove(&self.id);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
