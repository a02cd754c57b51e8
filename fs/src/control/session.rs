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
    /// The faults that were in force when it was opened; commands may be written to it.
    Faults(Arc<Vec<u8>>),
    /// A grant that was handed over.
    Grant,
    /// The file of an allocation of device memory.
    DeviceMemory {
        /// The allocation.
        id: u64,
        /// Open for reading.
        read: bool,
        /// Open for writing.
        write: bool,
    },
}

/// The poll that waits for an event of one session. All polls of one open file are the same to the kernel, so the
/// last waker wakes them all, and a client that polls again and again leaves nothing behind.
#[derive(Default)]
pub struct Wakers {
    waiting: Mutex<Option<Waker>>,
}

impl Wakers {
    /// A poll waits. Its waker is called once at most.
    pub fn add(&self, waker: Waker) {
        *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) = Some(waker);
    }

    /// Wakes whoever polls.
    pub fn wake(&self) {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(waker) = waiting {
            waker();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn polling_again_and_again_leaves_one_waker() {
        let wakers = Wakers::default();
        let woken = Arc::new(AtomicU32::new(0));
        for _ in 0..1000 {
            let woken = Arc::clone(&woken);
            wakers.add(Box::new(move || {
                woken.fetch_add(1, Ordering::SeqCst);
            }));
        }
        assert_eq!(Arc::strong_count(&woken), 2);
        wakers.wake();
        wakers.wake();
        assert_eq!(woken.load(Ordering::SeqCst), 1);
    }
}
