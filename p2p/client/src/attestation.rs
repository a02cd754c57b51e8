//! Path attestation: which way bytes went.

use std::ops::AddAssign;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use peerfs_abi::{Path, REASON_SLOTS, Reason};

/// Bytes moved, by path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Attestation {
    /// Through a software aperture in memory, bytes.
    pub direct_window: u64,
    /// Through a device's BAR, bytes.
    pub direct_bar: u64,
    /// Through the filesystem, bytes.
    pub fallback: u64,
}

impl Attestation {
    /// Bytes moved directly.
    pub fn direct(&self) -> u64 {
        self.direct_window + self.direct_bar
    }

    /// Bytes moved at all.
    pub fn total(&self) -> u64 {
        self.direct() + self.fallback
    }

    pub(crate) fn count(&mut self, path: Path, bytes: u64) {
        match path {
            Path::Fallback => self.fallback += bytes,
            Path::DirectWindow => self.direct_window += bytes,
            Path::DirectBar => self.direct_bar += bytes,
        }
    }
}

impl AddAssign for Attestation {
    fn add_assign(&mut self, other: Attestation) {
        self.direct_window += other.direct_window;
        self.direct_bar += other.direct_bar;
        self.fallback += other.fallback;
    }
}

/// Counters that several threads add to.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    window: AtomicU64,
    bar: AtomicU64,
    fallback: AtomicU64,
    /// `fallback` by reason; most mappings never need it.
    by_reason: OnceLock<Box<[AtomicU64; REASON_SLOTS]>>,
}

impl Counters {
    pub(crate) fn add(&self, moved: Attestation) {
        let pairs = [(&self.window, moved.direct_window), (&self.bar, moved.direct_bar), (&self.fallback, moved.fallback)];
        for (counter, bytes) in pairs {
            if bytes > 0 {
                counter.fetch_add(bytes, Ordering::Relaxed);
            }
        }
    }

    /// Says why bytes that are added besides fell back; `None`: they were direct once.
    pub(crate) fn explain(&self, reason: Option<Reason>, bytes: u64) {
        if bytes > 0 {
            let counters = self.by_reason.get_or_init(|| Box::new(std::array::from_fn(|_| AtomicU64::new(0))));
            counters[reason.map_or(0, Reason::slot)].fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// Bytes that fell back, by [`Reason::slot`].
    pub(crate) fn by_reason(&self) -> [u64; REASON_SLOTS] {
        let counters = self.by_reason.get();
        counters.map_or([0; REASON_SLOTS], |counters| std::array::from_fn(|slot| counters[slot].load(Ordering::Relaxed)))
    }

    pub(crate) fn total(&self) -> Attestation {
        Attestation {
            direct_window: self.window.load(Ordering::Relaxed),
            direct_bar: self.bar.load(Ordering::Relaxed),
            fallback: self.fallback.load(Ordering::Relaxed),
        }
    }
}
