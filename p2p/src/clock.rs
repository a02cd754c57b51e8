//! Time, so that deadlines are tested without waiting for them.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use crate::sync::{Condvar, Mutex, lock};

/// Something to wait at until it changes. Counts changes, so that none is missed between a look and the wait.
#[derive(Debug, Default)]
pub struct Gate {
    changes: Mutex<u64>,
    changed: Condvar,
}

impl Gate {
    /// Wakes everybody who waits.
    pub fn notify(&self) {
        *lock(&self.changes) += 1;
        self.changed.notify_all();
    }

    fn changes(&self) -> u64 {
        *lock(&self.changes)
    }

    fn wait_beyond(&self, seen: u64, timeout: Option<Duration>) {
        let guard = lock(&self.changes);
        match timeout {
            Some(timeout) => {
                drop(self.changed.wait_timeout_while(guard, timeout, |now| *now == seen).unwrap_or_else(PoisonError::into_inner))
            }
            None => drop(self.changed.wait_while(guard, |now| *now == seen).unwrap_or_else(PoisonError::into_inner)),
        }
    }
}

/// A monotonic clock that can be waited on.
pub trait Clock: Send + Sync {
    /// Time since some fixed moment.
    fn now(&self) -> Duration;
    /// Waits until `done`, which is looked at again at each change of `gate`, or until the deadline. Returns the
    /// last answer of `done`.
    fn wait(&self, gate: &Arc<Gate>, deadline: Option<Duration>, done: &mut dyn FnMut() -> bool) -> bool;
}

/// Real time.
#[derive(Debug)]
pub struct SystemClock(Instant);

impl Default for SystemClock {
    fn default() -> Self {
        SystemClock(Instant::now())
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Duration {
        self.0.elapsed()
    }

    fn wait(&self, gate: &Arc<Gate>, deadline: Option<Duration>, done: &mut dyn FnMut() -> bool) -> bool {
        loop {
            let seen = gate.changes();
            if done() {
                return true;
            }
            let left = deadline.map(|deadline| deadline.saturating_sub(self.now()));
            if left == Some(Duration::ZERO) {
                return false;
            }
            gate.wait_beyond(seen, left);
        }
    }
}

/// Time that moves only when told to.
#[derive(Debug, Default)]
pub struct VirtualClock {
    state: Mutex<Virtual>,
    sleepers_changed: Arc<Gate>,
}

#[derive(Debug, Default)]
struct Virtual {
    now: Duration,
    sleepers: Vec<(Arc<Gate>, Option<Duration>)>,
}

impl VirtualClock {
    /// Moves time forward and wakes whoever waits.
    pub fn advance(&self, by: Duration) {
        let gates: Vec<_> = {
            let mut state = lock(&self.state);
            state.now += by;
            state.sleepers.iter().map(|s| s.0.clone()).collect()
        };
        gates.iter().for_each(|gate| gate.notify());
    }

    /// Blocks (in real time) until at least `count` threads wait with a deadline that lies ahead.
    pub fn await_sleepers(&self, count: usize) {
        loop {
            let seen = self.sleepers_changed.changes();
            let waiting = {
                let state = lock(&self.state);
                let ahead = |d: &Option<Duration>| d.is_some_and(|d| d > state.now);
                state.sleepers.iter().filter(|s| ahead(&s.1)).count()
            };
            if waiting >= count {
                return;
            }
            self.sleepers_changed.wait_beyond(seen, None);
        }
    }
}

impl Clock for VirtualClock {
    fn now(&self) -> Duration {
        lock(&self.state).now
    }

    fn wait(&self, gate: &Arc<Gate>, deadline: Option<Duration>, done: &mut dyn FnMut() -> bool) -> bool {
        let mut listed = false;
        let result = loop {
            let seen = gate.changes();
            if done() {
                break true;
            }
            {
                let mut state = lock(&self.state);
                if deadline.is_some_and(|deadline| state.now >= deadline) {
                    break false;
                }
                if !listed {
                    state.sleepers.push((gate.clone(), deadline));
                    listed = true;
                }
            }
            self.sleepers_changed.notify();
            gate.wait_beyond(seen, None);
        };
        if listed {
            let mut state = lock(&self.state);
            let same = |s: &(Arc<Gate>, Option<Duration>)| Arc::ptr_eq(&s.0, gate) && s.1 == deadline;
            if let Some(at) = state.sleepers.iter().position(same) {
                state.sleepers.swap_remove(at);
            }
        }
        result
    }
}
