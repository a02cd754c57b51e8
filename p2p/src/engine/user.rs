//! What one user has of what all users of a mount share.

use std::sync::Arc;

use crate::sync::atomic::{AtomicUsize, Ordering};

/// A user with sessions.
#[derive(Default)]
pub(super) struct User {
    sessions: AtomicUsize,
    mappings: AtomicUsize,
}

/// What is counted for a user.
#[derive(Debug, Clone, Copy)]
enum What {
    Session,
    Mapping,
}

/// One of what is counted; given back when dropped.
pub(super) struct Share {
    user: Arc<User>,
    what: What,
}

impl User {
    fn counter(&self, what: What) -> &AtomicUsize {
        match what {
            What::Session => &self.sessions,
            What::Mapping => &self.mappings,
        }
    }

    fn take(self: &Arc<Self>, what: What, limit: usize) -> Option<Share> {
        // Given back where it was one too many.
        let share = Share { user: self.clone(), what };
        let before = self.counter(what).fetch_add(1, Ordering::SeqCst);
        (before < limit).then_some(share)
    }

    /// `None`: the user has as many as one may.
    pub(super) fn take_session(self: &Arc<Self>, limit: usize) -> Option<Share> {
        self.take(What::Session, limit)
    }

    /// `None`: the user has as many as one may.
    pub(super) fn take_mapping(self: &Arc<Self>, limit: usize) -> Option<Share> {
        self.take(What::Mapping, limit)
    }

    /// Nobody needs to remember this user.
    pub(super) fn is_gone(&self) -> bool {
        self.sessions.load(Ordering::SeqCst) == 0 && self.mappings.load(Ordering::SeqCst) == 0
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.user.counter(self.what).fetch_sub(1, Ordering::SeqCst);
    }
}
