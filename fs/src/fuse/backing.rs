//! Passthrough backing files of open grants.

use dashmap::DashMap;
use fuser::BackingId;

use crate::types::Handle;

/// Keeps a backing id for as long as its handle is open: the kernel answers
/// EIO on a handle whose backing file was closed.
#[derive(Default)]
pub struct Backings {
    open: DashMap<Handle, BackingId>,
}

impl Backings {
    /// Keeps the backing file of a handle.
    pub fn keep(&self, handle: Handle, backing: BackingId) {
        self.open.insert(handle, backing);
    }

    /// The handle was released.
    pub fn drop_handle(&self, handle: Handle) {
        self.open.remove(&handle);
    }
}
