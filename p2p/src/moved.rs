//! Path attestation as the server keeps it: bytes moved by path and, where they fell back, by reason.

use std::sync::atomic::{AtomicU64, Ordering};

use peerfs_abi::{Path, REASON_SLOTS, slot_name};
use serde::ser::{Serialize, SerializeMap, Serializer};

/// Bytes moved, as importers reported them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Moved {
    /// Through software apertures.
    pub direct_window: u64,
    /// Through BARs of devices.
    pub direct_bar: u64,
    /// By fallback, for each reason ([`peerfs_abi::Reason::slot`]).
    pub fallback: [u64; REASON_SLOTS],
}

impl Moved {
    /// Directly, on either path.
    pub fn direct(&self) -> u64 {
        self.direct_window.saturating_add(self.direct_bar)
    }

    /// By fallback, for whatever reason.
    pub fn fallback_total(&self) -> u64 {
        self.fallback.iter().fold(0, |sum: u64, bytes| sum.saturating_add(*bytes))
    }

    /// Nothing was moved.
    pub fn is_nothing(&self) -> bool {
        *self == Moved::default()
    }

    /// Adds a report. Clients may report anything, so sums stop at the largest number.
    pub fn add(&mut self, more: &Moved) {
        self.direct_window = self.direct_window.saturating_add(more.direct_window);
        self.direct_bar = self.direct_bar.saturating_add(more.direct_bar);
        for (sum, bytes) in self.fallback.iter_mut().zip(&more.fallback) {
            *sum = sum.saturating_add(*bytes);
        }
    }
}

/// `{"direct-window": 1, "direct-bar": 2, "fallback": {"Hole": 3}}`; reasons without bytes are left out.
impl Serialize for Moved {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(3))?;
        map.serialize_entry(Path::DirectWindow.name(), &self.direct_window)?;
        map.serialize_entry(Path::DirectBar.name(), &self.direct_bar)?;
        map.serialize_entry(Path::Fallback.name(), &ByReason(&self.fallback))?;
        map.end()
    }
}

/// Counts by reason, as an object with a name for each that is not zero.
pub struct ByReason<'a>(pub &'a [u64; REASON_SLOTS]);

impl Serialize for ByReason<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let counted = self.0.iter().enumerate().filter(|(_, count)| **count > 0);
        serializer.collect_map(counted.map(|(slot, count)| (slot_name(slot), count)))
    }
}

/// A counter for each reason, that all threads add to.
#[derive(Debug)]
pub(crate) struct ReasonCounters([AtomicU64; REASON_SLOTS]);

impl Default for ReasonCounters {
    fn default() -> Self {
        ReasonCounters(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl ReasonCounters {
    /// Adds to the counter of a place.
    pub(crate) fn add(&self, slot: usize, count: u64) {
        if count > 0
            && let Some(counter) = self.0.get(slot)
        {
            saturating_add(counter, count);
        }
    }

    pub(crate) fn load(&self) -> [u64; REASON_SLOTS] {
        std::array::from_fn(|slot| self.0[slot].load(Ordering::Relaxed))
    }
}

/// [`Moved`], that all threads add to.
#[derive(Debug, Default)]
pub(crate) struct MovedCounters {
    direct_window: AtomicU64,
    direct_bar: AtomicU64,
    fallback: ReasonCounters,
}

impl MovedCounters {
    pub(crate) fn add(&self, more: &Moved) {
        saturating_add(&self.direct_window, more.direct_window);
        saturating_add(&self.direct_bar, more.direct_bar);
        more.fallback.iter().enumerate().for_each(|(slot, bytes)| self.fallback.add(slot, *bytes));
    }

    pub(crate) fn load(&self) -> Moved {
        Moved {
            direct_window: self.direct_window.load(Ordering::Relaxed),
            direct_bar: self.direct_bar.load(Ordering::Relaxed),
            fallback: self.fallback.load(),
        }
    }
}

fn saturating_add(counter: &AtomicU64, more: u64) {
    // It never answers `None`, so it never fails.
    let _ = counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |sum| Some(sum.saturating_add(more)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use peerfs_abi::Reason;

    #[test]
    fn sums_stop_at_the_largest_number_and_zeros_are_left_out() {
        let mut moved = Moved { direct_window: 5, ..Moved::default() };
        moved.fallback[Reason::Hole.slot()] = u64::MAX;
        moved.add(&moved.clone());
        assert_eq!((moved.direct(), moved.fallback_total()), (10, u64::MAX));
        moved.fallback[0] = 1;
        let text = serde_json::to_string(&moved).expect("it is plain data");
        assert_eq!(text, r#"{"direct-window":10,"direct-bar":0,"fallback":{"revoked":1,"Hole":18446744073709551615}}"#);
        let counters = MovedCounters::default();
        counters.add(&moved);
        counters.add(&moved);
        assert_eq!((counters.load().direct_window, counters.load().fallback[0]), (20, 2));
        assert_eq!(counters.load().fallback[Reason::Hole.slot()], u64::MAX);
    }
}
