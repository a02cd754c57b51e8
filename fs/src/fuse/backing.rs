//! Passthrough backing files of open grants.

use std::ops::Deref;

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
    /// Keeps the backing file of a handle, and lends it for the reply: the release may come as soon as that is sent,
    /// and must find it here.
    pub fn keep(&self, handle: Handle, backing: BackingId) -> impl Deref<Target = BackingId> + '_ {
        self.open.entry(handle).insert(backing)
    }

    /// The handle was released.
    pub fn drop_handle(&self, handle: Handle) {
        self.open.remove(&handle);
    }
}
