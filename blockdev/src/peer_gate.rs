//! Peers inside this process: their copies end with the cut, which waits for those under way.

use std::sync::{PoisonError, RwLock, RwLockReadGuard};

/// Open until it is closed for good.
#[derive(Debug, Default)]
pub(crate) struct PeerGate {
    closed: RwLock<bool>,
}

impl PeerGate {
    /// Permission for one copy, while it is held; `None` after the cut.
    pub(crate) fn enter(&self) -> Option<RwLockReadGuard<'_, bool>> {
        let closed = self.closed.read().unwrap_or_else(PoisonError::into_inner);
        (!*closed).then_some(closed)
    }

    /// No copy is under way when this returns, and none begins.
    pub(crate) fn close(&self) {
        *self.closed.write().unwrap_or_else(PoisonError::into_inner) = true;
    }
}
