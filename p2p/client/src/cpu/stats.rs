//! What a device counts.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::Attestation;
use crate::attestation::Counters;

/// What a device has done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DeviceStats {
    /// Accesses that found no translation and asked the server.
    pub faults: u64,
    /// Accesses whose translation was in the translation cache.
    pub cache_hits: u64,
    /// Accesses that walked the page table.
    pub cache_misses: u64,
    /// Revocations that removed translations.
    pub shootdowns: u64,
    /// Bytes moved, by path.
    pub moved: Attestation,
}

/// [`DeviceStats`] as it grows.
#[derive(Debug, Default)]
pub(crate) struct StatCounters {
    pub(crate) faults: AtomicU64,
    pub(crate) cache_hits: AtomicU64,
    pub(crate) cache_misses: AtomicU64,
    pub(crate) shootdowns: AtomicU64,
    pub(crate) moved: Counters,
}

impl StatCounters {
    pub(crate) fn snapshot(&self) -> DeviceStats {
        DeviceStats {
            faults: self.faults.load(Ordering::Relaxed),
            cache_hits: self.cache_hits.load(Ordering::Relaxed),
            cache_misses: self.cache_misses.load(Ordering::Relaxed),
            shootdowns: self.shootdowns.load(Ordering::Relaxed),
            moved: self.moved.total(),
        }
    }
}

/// Adds one.
pub(crate) fn bump(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
