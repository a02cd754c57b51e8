//! Passthrough backing files of open grants.

use std::sync::Arc;

use dashmap::DashMap;
use fuser::BackingId;

use crate::types::Handle;

/// Keeps a backing id for as long as its handle is open: the kernel answers
/// EIO on a handle whose backing file was closed.
#[derive(Default)]
pub struct Backings {
    open: DashMap<Handle, Arc<BackingId>>,
}

impl Backings {
    /// Keeps the backing file of a handle, and answers it for the reply: the release may come as soon as that is sent,
    /// and must find it here. No lock is held when this returns, so that sending the reply delays nobody.
    pub fn keep(&self, handle: Handle, backing: BackingId) -> Arc<BackingId> {
        let backing = Arc::new(backing);
        self.open.insert(handle, Arc::clone(&backing));
        backing
    }

    /// The handle was released. The backing file is closed outside of the table's locks, and not before a reply that
    /// names it was sent.
    pub fn drop_handle(&self, handle: Handle) {
        drop(self.open.remove(&handle));
    }
}
