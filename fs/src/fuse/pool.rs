//! Threads for requests that may have to wait.
//!
//! Serving threads must stay free: acknowledgements of revocations and the
//! write-back that an invalidation causes arrive through them. A pool grows with
//! the number of waiting requests up to its limit, because requests in it can
//! wait for each other. Requests that wait for others to be *served* (whatever
//! empties the page cache) need a pool of their own: clients with enough threads
//! could fill one that both kinds share, and nothing in it would ever end.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// A thread without work for this long ends.
const IDLE: Duration = Duration::from_secs(5);
const STACK_BYTES: usize = 512 * 1024;

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

/// An elastic thread pool.
pub struct Pool {
    shared: Arc<Shared>,
    limit: usize,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    wake: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pool {
    /// A pool that starts `limit` threads at most; further jobs queue.
    pub fn new(limit: usize) -> Pool {
        Pool { shared: Arc::default(), limit }
    }

    /// Runs `job` on some thread, soon. A job must not panic.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        let mut state = self.shared.lock();
        state.jobs.push_back(Box::new(job));
        if state.idle >= state.jobs.len() || state.threads >= self.limit {
            self.shared.wake.notify_one();
            return;
        }
        let shared = Arc::clone(&self.shared);
        let started = thread::Builder::new().name("peerfs-wait".into()).stack_size(STACK_BYTES).spawn(move || work(&shared));
        if started.is_ok() {
            state.threads += 1;
        } else if state.threads == 0 {
            // No thread can be had at all: the caller's own is better than none.
            let job = state.jobs.pop_back();
            drop(state);
            if let Some(job) = job {
                job();
            }
        }
    }
}

fn work(shared: &Shared) {
    let mut state = shared.lock();
    loop {
        if let Some(job) = state.jobs.pop_front() {
            drop(state);
            job();
            state = shared.lock();
            continue;
        }
        state.idle += 1;
        let (guard, timeout) = shared.wake.wait_timeout(state, IDLE).unwrap_or_else(PoisonError::into_inner);
        state = guard;
        state.idle -= 1;
        if timeout.timed_out() && state.jobs.is_empty() {
            state.threads -= 1;
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn jobs_that_wait_for_later_jobs_do_not_deadlock() {
        let pool = Pool::new(128);
        let (done, finished) = mpsc::channel();
        let mut senders = Vec::new();
        for _ in 0..100 {
            let (go, wait) = mpsc::channel::<()>();
            senders.push(go);
            let done = done.clone();
            pool.run(move || {
                wait.recv().expect("the last job sends");
                done.send(()).expect("the test receives");
            });
        }
        pool.run(move || senders.into_iter().for_each(|go| go.send(()).expect("a job waits")));
        for _ in 0..100 {
            finished.recv_timeout(Duration::from_secs(60)).expect("all jobs end");
        }
    }
}
