//! Service threads never wait for each other in a circle.
//!
//! A callback runs on its session's service thread and may end mappings of other sessions, which waits for callbacks on
//! their service threads, which may do the same. Other threads may always wait: no service thread waits for one of them.

use std::cell::Cell;
use std::sync::Mutex;
use std::thread::{self, ThreadId};

use crate::registry::lock;

thread_local! {
    static SERVES: Cell<bool> = const { Cell::new(false) };
}

/// Which service thread waits for which, in callbacks; one at a time each, and never in a circle.
static WAITS: Mutex<Vec<(ThreadId, ThreadId)>> = Mutex::new(Vec::new());

/// Call first on a service thread.
pub(crate) fn serve() {
    SERVES.set(true);
}

/// Held while this thread waits for a service thread.
pub(crate) struct Waiting(Option<ThreadId>);

impl Waiting {
    /// `None`: it must not wait, because it is that thread, or that thread waits for this one.
    pub(crate) fn begin(service: ThreadId) -> Option<Waiting> {
        // Threads of the program stay away from the lock, so that a fork child finds it free.
        if !SERVES.get() {
            return Some(Waiting(None));
        }
        let own = thread::current().id();
        let mut waits = lock(&WAITS);
        let mut next = Some(service);
        while let Some(thread) = next {
            if thread == own {
                return None;
            }
            next = waits.iter().find(|(waiter, _)| *waiter == thread).map(|(_, awaited)| *awaited);
        }
        waits.push((own, service));
        Some(Waiting(Some(own)))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(own) = self.0 {
            lock(&WAITS).retain(|(waiter, _)| *waiter != own);
        }
    }
}
