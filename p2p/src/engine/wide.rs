//! Which objects are mapped in pieces smaller than a chunk.
//!
//! A window cannot grow: a map of blocks that the chunk's window lacks has to
//! revoke it first. Filling whole chunks from the start would avoid that, but
//! makes a single small map read 2 MiB. So the first map of a chunk is exact until
//! an object has been seen to need more; from then on its windows are built wide.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::types::ObjectId;

/// Objects remembered. Two that share a place displace each other: each costs the other one revocation.
const PLACES: usize = 4096;

pub(super) struct WideObjects(Box<[AtomicU64]>);

impl Default for WideObjects {
    fn default() -> Self {
        WideObjects((0..PLACES).map(|_| AtomicU64::new(0)).collect())
    }
}

impl WideObjects {
    /// A window of the object lacked blocks that a map asked for.
    pub(super) fn note(&self, object: ObjectId) {
        self.place(object).store(object.0, Ordering::Relaxed);
    }

    pub(super) fn contains(&self, object: ObjectId) -> bool {
        self.place(object).load(Ordering::Relaxed) == object.0
    }

    fn place(&self, object: ObjectId) -> &AtomicU64 {
        &self.0[object.0 as usize % PLACES]
    }
}
