//! Open virtual files.

use std::sync::{Arc, Mutex, PoisonError};

use peerfs_p2p::SessionId;

/// Wakes a poll(2) on a session.
pub type Waker = Box<dyn Fn() + Send>;

/// An open virtual file.
pub enum VirtualHandle {
    /// A client's session.
    Session {
        /// The engine's name for it.
        id: SessionId,
        /// Polls that wait for an event.
        wakers: Arc<Wakers>,
    },
    /// A text made when the file was opened.
    Text(Arc<Vec<u8>>),
    /// A grant that was handed over.
    Grant,
}

/// Polls that wait for an event of one session.
#[derive(Default)]
pub struct Wakers {
    waiting: Mutex<Vec<Waker>>,
}

impl Wakers {
    /// One more poll waits. Its waker is called once at most.
    pub fn add(&self, waker: Waker) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push(waker);
    }

    /// Wakes all of them.
    pub fn wake(&self) {
        let waiting = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        for waker in waiting {
            waker();
        }
    }
}
