//! Peers that are ours to stop: copies inside this process, and DMA engines that it drives. The cut ends them.

use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, Weak};

use crate::Peer;

/// Open until it is closed for good.
#[derive(Debug, Default)]
pub(crate) struct PeerGate {
    closed: RwLock<bool>,
    engines: Mutex<Vec<Weak<dyn Peer>>>,
}

impl PeerGate {
    /// Permission for one copy, while it is held; `None` after the cut.
    pub(crate) fn enter(&self) -> Option<RwLockReadGuard<'_, bool>> {
        let closed = self.closed.read().unwrap_or_else(PoisonError::into_inner);
        (!*closed).then_some(closed)
    }

    /// Lets a DMA engine in until it is dropped; `false` after the cut.
    pub(crate) fn admit(&self, peer: &Arc<dyn Peer>) -> bool {
        let Some(_open) = self.enter() else { return false };
        let mut engines = self.engines.lock().unwrap_or_else(PoisonError::into_inner);
        engines.retain(|engine| engine.strong_count() > 0);
        engines.push(Arc::downgrade(peer));
        true
    }

    /// Some have been let in and not been dropped.
    pub(crate) fn has_engines(&self) -> bool {
        let engines = self.engines.lock().unwrap_or_else(PoisonError::into_inner);
        engines.iter().any(|engine| engine.strong_count() > 0)
    }

    /// No copy is under way when this returns, no transfer lands, and none begins.
    pub(crate) fn close(&self) {
        *self.closed.write().unwrap_or_else(PoisonError::into_inner) = true;
        // Locked meanwhile: whoever closes it too must not come back earlier.
        let mut engines = self.engines.lock().unwrap_or_else(PoisonError::into_inner);
        engines.drain(..).filter_map(|engine| engine.upgrade()).for_each(|engine| engine.sever());
    }
}
