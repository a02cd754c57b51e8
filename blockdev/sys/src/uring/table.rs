//! The table of requests under way, and the leader/follower wait.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use slab::Slab;

use super::request::Request;
use super::ring::{MAX_RUNNING, Ring};

#[derive(Default)]
struct State {
    requests: Slab<Request>,
    /// Requests whose completion has not been seen.
    running: usize,
    /// A leader is at work; nobody else may reap.
    led: bool,
    /// Threads waiting in `start` for the number of requests to fall.
    crowd: usize,
}

pub(super) struct Table {
    state: Mutex<State>,
    room: Condvar,
}

impl Table {
    pub(super) fn new() -> Self {
        Table { state: Mutex::default(), room: Condvar::new() }
    }

    pub(super) fn running(&self) -> usize {
        self.lock().running
    }

    /// Takes the request in and hands it to the kernel.
    pub(super) fn start(&self, ring: &Ring, request: Request) -> usize {
        let mut state = self.lock();
        while state.running >= MAX_RUNNING {
            state = if state.led {
                state.crowd += 1;
                let mut state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.crowd -= 1;
                state
            } else {
                self.lead(ring, state, |state| state.running < MAX_RUNNING)
            };
        }
        state.running += 1;
        let key = state.requests.insert(request);
        let entry = state.requests[key].entry(key);
        drop(state);
        // SAFETY: the table owns everything the entry names until `apply` sees its completion.
        unsafe { ring.push(&entry) };
        key
    }

    /// Blocks until the request has ended and takes it out.
    pub(super) fn wait(&self, ring: &Ring, key: usize) -> Request {
        let mut state = self.lock();
        loop {
            if state.requests[key].outcome.is_some() {
                return state.requests.remove(key);
            }
            if state.led {
                state.requests[key].waiter = Some(thread::current());
                drop(state);
                // Whoever ends the request or appoints us unparks us; a token left by an
                // unpark between the two lines makes park return at once.
                thread::park();
                state = self.lock();
                state.requests[key].waiter = None;
            } else {
                state = self.lead(ring, state, |state| state.requests[key].outcome.is_some());
            }
        }
    }

    /// Nobody will wait for it: it is dropped when it ends. False for a request that uses a
    /// window and has not ended: that one has to be waited for.
    pub(super) fn forget(&self, key: usize) -> bool {
        let mut state = self.lock();
        let request = &mut state.requests[key];
        if request.outcome.is_some() {
            let request = state.requests.remove(key);
            drop(state);
            drop(request);
            return true;
        }
        if request.uses_window() {
            return false;
        }
        request.forgotten = true;
        true
    }

    /// Waits for everything.
    pub(super) fn drain(&self, ring: &Ring) {
        let state = self.lock();
        if state.running > 0 {
            drop(self.lead(ring, state, |state| state.running == 0));
        }
    }

    /// Reaps for everybody until `done`, then appoints a successor.
    fn lead<'a>(&'a self, ring: &Ring, mut state: MutexGuard<'a, State>, done: impl Fn(&State) -> bool) -> MutexGuard<'a, State> {
        state.led = true;
        let mut batch = Vec::new();
        while !done(&state) {
            drop(state);
            batch.clear();
            ring.reap(&mut batch);
            state = self.lock();
            let again = state.apply(&batch);
            if state.crowd > 0 {
                self.room.notify_all();
            }
            if !again.is_empty() {
                drop(state);
                for entry in &again {
                    // SAFETY: as in `start`; the request is still in the table.
                    unsafe { ring.push(entry) };
                }
                state = self.lock();
            }
        }
        state.led = false;
        state.appoint();
        if state.crowd > 0 {
            self.room.notify_all();
        }
        state
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Takes completions in; gives the entries of requests that have to go on.
    fn apply(&mut self, batch: &[(u64, i32)]) -> Vec<io_uring::squeue::Entry> {
        let mut again = Vec::new();
        for &(key, result) in batch {
            let key = key as usize;
            let request = &mut self.requests[key];
            if request.advance(result) {
                again.push(request.entry(key));
                continue;
            }
            self.running -= 1;
            if let Some(waiter) = request.waiter.take() {
                waiter.unpark();
            }
            if request.forgotten {
                self.requests.remove(key);
            }
        }
        again
    }

    /// Wakes one thread that waits for a request which has not ended, to lead.
    fn appoint(&self) {
        let waiting = self.requests.iter().find_map(|(_, request)| request.waiter.as_ref());
        if let Some(waiter) = waiting {
            waiter.unpark();
        }
    }
}
