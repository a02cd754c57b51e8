//! What the device reported: the reasons it adds to decisions.

use peerfs_abi::{Reason, ReasonSet};
use peerfs_blockdev::{BLOCK_BYTES, DeviceEvent};

use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Mutex, lock};
use crate::types::Range;

/// Bad ranges remembered one by one; more make the whole device count as bad.
const BAD_RANGES_MAX: usize = 1024;

#[derive(Default)]
pub(super) struct DeviceState {
    resetting: AtomicBool,
    /// Recoveries after which not everything is revoked yet.
    recoveries: AtomicU64,
    /// There are bad ranges; while there are none, nobody needs the lock.
    any_bad: AtomicBool,
    /// Whole blocks, since a window holds whole ones; sorted, apart from each other.
    bad: Mutex<Vec<Range>>,
}

impl DeviceState {
    pub(super) fn note(&self, event: &DeviceEvent) {
        match event {
            DeviceEvent::Reset | DeviceEvent::Removed => self.resetting.store(true, Ordering::SeqCst),
            DeviceEvent::Recovered => drop(self.recoveries.fetch_add(1, Ordering::SeqCst)),
            DeviceEvent::MediaError { offset, length } => {
                let mut bad = lock(&self.bad);
                insert(&mut bad, to_blocks(Range::new(*offset, *length)));
                self.any_bad.store(!bad.is_empty(), Ordering::SeqCst);
                if bad.len() > BAD_RANGES_MAX {
                    *bad = vec![Range::ALL];
                }
            }
        }
    }

    /// Maps may come again: those from before a noted recovery have ended.
    pub(super) fn revoked_after_recovery(&self) {
        self.recoveries.fetch_sub(1, Ordering::SeqCst);
    }

    pub(super) fn clear(&self) {
        self.resetting.store(false, Ordering::SeqCst);
        let mut bad = lock(&self.bad);
        bad.clear();
        self.any_bad.store(false, Ordering::SeqCst);
    }

    /// Reasons that hold for every block of the device.
    pub(super) fn refusals(&self) -> ReasonSet {
        let resetting = self.resetting.load(Ordering::SeqCst) || self.recoveries.load(Ordering::SeqCst) > 0;
        ReasonSet::EMPTY.with_if(resetting, Reason::DeviceResetting)
    }

    /// Ranges of the device that cannot be read or written: whole blocks, sorted, apart from each other.
    pub(super) fn bad(&self) -> Vec<Range> {
        if self.any_bad.load(Ordering::SeqCst) { lock(&self.bad).clone() } else { Vec::new() }
    }
}

fn to_blocks(range: Range) -> Range {
    Range { start: range.start / BLOCK_BYTES * BLOCK_BYTES, end: range.end.div_ceil(BLOCK_BYTES).saturating_mul(BLOCK_BYTES) }
}

/// Adds a range; those that touch it become part of it.
fn insert(ranges: &mut Vec<Range>, new: Range) {
    if new.is_empty() {
        return;
    }
    let first = ranges.partition_point(|range| range.end < new.start);
    let last = ranges.partition_point(|range| range.start <= new.end);
    let touched = &ranges[first..last];
    let start = touched.first().map_or(new.start, |range| range.start.min(new.start));
    let end = touched.last().map_or(new.end, |range| range.end.max(new.end));
    ranges.splice(first..last, [Range { start, end }]);
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn bad_ranges_stay_sorted_and_apart() {
        let state = DeviceState::default();
        for (offset, length) in [(40_960, 1), (4096, 4096), (0, 0), (8000, 500), (100_000, 4096)] {
            state.note(&DeviceEvent::MediaError { offset, length });
        }
        let blocks = |from: u64, to: u64| Range { start: from * 4096, end: to * 4096 };
        assert_eq!(state.bad(), [blocks(1, 3), blocks(10, 11), blocks(24, 26)]);
        state.note(&DeviceEvent::MediaError { offset: 3 * 4096, length: 30 * 4096 });
        assert_eq!(state.bad(), [blocks(1, 33)]);
        for number in 0..=BAD_RANGES_MAX as u64 {
            state.note(&DeviceEvent::MediaError { offset: (100 + 2 * number) * 4096, length: 1 });
        }
        assert_eq!(state.bad(), [Range::ALL], "too many to remember");
        state.clear();
        assert!(state.bad().is_empty() && state.refusals().is_empty());
    }
}
