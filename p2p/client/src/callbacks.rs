//! The callbacks of a mapping, and how its end waits for one that runs.

use std::mem;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::ThreadId;

use crate::Revocation;
use crate::registry::lock;
use crate::waiting::Waiting;

type Callback = Arc<dyn Fn(&Revocation) + Send + Sync>;

/// Run by the service thread only, so never twice at a time.
#[derive(Default)]
pub(crate) struct Callbacks {
    state: Mutex<State>,
    /// A run has ended.
    returned: Condvar,
}

#[derive(Default)]
struct State {
    list: Vec<Callback>,
    running: bool,
    /// Who waits until they no longer run.
    waiters: usize,
    ended: bool,
}

impl Callbacks {
    pub(crate) fn add(&self, callback: Callback) {
        let mut state = lock(&self.state);
        if !state.ended {
            state.list.push(callback);
        }
    }

    /// Calls them in order, without a lock: they may use the mapping, add callbacks, which wait for the next revocation,
    /// and end the mapping, after which no other is called.
    pub(crate) fn run(&self, revocation: &Revocation) {
        let mut state = lock(&self.state);
        let count = state.list.len();
        state.running = count > 0;
        drop(state);
        let _running = Running(self);
        for index in 0..count {
            let Some(callback) = self.at(index) else { return };
            callback(revocation);
        }
    }

    fn at(&self, index: usize) -> Option<Callback> {
        lock(&self.state).list.get(index).cloned()
    }

    /// None starts any more, and one that runs on the thread `service` has returned, unless it is the caller of this, or
    /// waits for the caller.
    pub(crate) fn end(&self, service: ThreadId) {
        let mut state = lock(&self.state);
        state.ended = true;
        let list = mem::take(&mut state.list);
        if state.running
            && let Some(_waiting) = Waiting::begin(service)
        {
            state.waiters += 1;
            state = self.returned.wait_while(state, |state| state.running).unwrap_or_else(PoisonError::into_inner);
            state.waiters -= 1;
        }
        drop(state);
        // What they own may end other mappings.
        drop(list);
    }

    #[cfg(test)]
    pub(crate) fn waiters(&self) -> usize {
        lock(&self.state).waiters
    }
}

/// While it lives, callbacks run; also one that panics ends.
struct Running<'c>(&'c Callbacks);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        state.running = false;
        if state.waiters > 0 {
            self.0.returned.notify_all();
        }
    }
}
