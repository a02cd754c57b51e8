//! Queue pairs that their users may delete at any time, beside those that every request shares.
//!
//! Deleting a submission queue ends its commands (section 5.6), and so their transfers, while everybody else's go on: that
//! is how memory is taken away from a controller that may be using it. A reset ends a private queue too, since its
//! commands must not be sent again to memory that may be out of reach by then.

use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use peerfs_nvme_spec::{Command, Completion};

use super::controller::{Controller, judge};
use super::error::NvmeError;
use super::queue::{Data, Outcome, QueuePair, Trouble};

/// The ids of private queues, and those in use.
#[derive(Debug, Default)]
pub(super) struct PrivateQueues {
    count: u16,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    free: Vec<u16>,
    used: Vec<Weak<QueuePair>>,
}

impl PrivateQueues {
    pub(super) fn new(ids: RangeInclusive<u16>) -> Self {
        let free: Vec<u16> = ids.collect();
        PrivateQueues { count: free.len() as u16, state: Mutex::new(State { free, used: Vec::new() }) }
    }

    /// How many there may be.
    pub(super) fn count(&self) -> u16 {
        self.count
    }

    /// Those in use, to be ended: the controller forgets them.
    pub(super) fn take_used(&self) -> Vec<Arc<QueuePair>> {
        self.lock().used.drain(..).filter_map(|queue| queue.upgrade()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A queue pair of one user. Deleted when dropped.
#[derive(Debug)]
pub struct PrivateQueue {
    controller: Arc<Controller>,
    pair: Arc<QueuePair>,
}

/// A command of a private queue. [`PrivateQueue::finish`] waits for it.
#[derive(Debug)]
pub(super) struct PrivatelySent {
    name: &'static str,
    outcome: Arc<Outcome>,
}

impl Controller {
    /// A queue pair that only its user uses.
    ///
    /// # Errors
    /// `NoQueueLeft`; what the controller answers, or what is wrong with it.
    pub fn private_queue(self: &Arc<Self>) -> Result<PrivateQueue, NvmeError> {
        let id = self.private.lock().free.pop().ok_or(NvmeError::NoQueueLeft(self.private.count))?;
        let made = self.make_queue(id).and_then(|pair| self.create_private(Arc::new(pair)));
        match made {
            Ok(pair) => Ok(PrivateQueue { controller: self.clone(), pair }),
            Err(error) => {
                self.private.lock().free.push(id);
                Err(error)
            }
        }
    }

    fn create_private(&self, pair: Arc<QueuePair>) -> Result<Arc<QueuePair>, NvmeError> {
        let life = self.life.lock().unwrap_or_else(PoisonError::into_inner);
        life.check()?;
        pair.begin_life(&mut pair.lock(), life.number());
        let completions = self.create_completions(&pair);
        match completions.clone().and_then(|()| self.create_submissions(&pair)) {
            Ok(()) => {
                let mut state = self.private.lock();
                state.used.retain(|queue| queue.strong_count() > 0);
                state.used.push(Arc::downgrade(&pair));
                Ok(pair)
            }
            Err(error) => {
                // A controller that only refuses goes on as it was.
                let refused = matches!(error, NvmeError::Command { .. });
                if !refused || (completions.is_ok() && self.delete_completions(&pair).is_err()) {
                    let trouble = Trouble { life: life.number(), error: error.clone() };
                    drop(life);
                    self.recover(&trouble);
                }
                Err(error)
            }
        }
    }

    fn delete_completions(&self, pair: &QueuePair) -> Result<(), NvmeError> {
        self.admin("delete a completion queue", Command::delete_completion_queue(pair.shape().id)).map(drop)
    }
}

impl PrivateQueue {
    /// Most commands that can be in flight without waiting for a place.
    pub fn depth(&self) -> usize {
        usize::from(self.pair.shape().entries) - 1
    }

    /// It was deleted, or the controller was reset: another one is needed.
    pub fn has_ended(&self) -> bool {
        self.pair.is_given_up()
    }

    /// Sends a command.
    pub(super) fn send(&self, name: &'static str, command: Command, data: Data) -> Result<PrivatelySent, NvmeError> {
        let outcome = self.through_trouble(|| self.pair.submit(&*self.controller.port, command, data))?;
        Ok(PrivatelySent { name, outcome })
    }

    /// Waits for a command. It has no access to its memory any more, however it ended.
    pub(super) fn finish(&self, sent: &PrivatelySent) -> Result<Completion, NvmeError> {
        let completion = self.through_trouble(|| self.pair.wait(&*self.controller.port, &sent.outcome))?;
        judge(sent.name, completion)
    }

    /// No command of it reaches memory any more when this returns; those that were in flight fail with `QueueDeleted`.
    pub fn delete(&self) {
        let controller = &*self.controller;
        let life = controller.life.lock().unwrap_or_else(PoisonError::into_inner);
        if self.pair.is_given_up() {
            return;
        }
        let delete = Command::delete_submission_queue(self.pair.shape().id);
        let deleted = controller.admin("delete a submission queue", delete);
        match deleted.and_then(|_| controller.delete_completions(&self.pair)) {
            Ok(()) => self.pair.give_up(&mut self.pair.lock(), life.number(), &NvmeError::QueueDeleted),
            Err(error) => {
                // A reset, or being given up, ends it as well.
                let trouble = Trouble { life: life.number(), error };
                drop(life);
                controller.recover(&trouble);
            }
        }
    }

    /// Once nobody is deleting it.
    fn is_deleted(&self) -> bool {
        let _life = self.controller.life.lock().unwrap_or_else(PoisonError::into_inner);
        self.pair.is_given_up()
    }

    fn through_trouble<T>(&self, attempt: impl Fn() -> Result<Result<T, NvmeError>, Trouble>) -> Result<T, NvmeError> {
        loop {
            match attempt() {
                Ok(result) => return result,
                // Whoever deletes the queue has the controller to himself, and ends the trouble as well.
                Err(_) if self.is_deleted() => {}
                Err(trouble) => self.controller.recover(&trouble),
            }
        }
    }
}

impl Drop for PrivateQueue {
    fn drop(&mut self) {
        self.delete();
        self.controller.private.lock().free.push(self.pair.shape().id);
    }
}
