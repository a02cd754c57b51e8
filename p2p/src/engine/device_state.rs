//! What the device reported: the reasons it adds to decisions.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use peerfs_abi::Reason;
use peerfs_blockdev::{DeviceEvent, PathKind};

use crate::decide::push;
use crate::sync::lock;
use crate::types::{Decision, Placement, Range};

/// Bad ranges remembered one by one; more make the whole device count as bad.
const BAD_RANGES_MAX: usize = 1024;

#[derive(Default)]
pub(super) struct DeviceState {
    resetting: AtomicBool,
    bad: Mutex<Vec<Range>>,
}

impl DeviceState {
    pub(super) fn note(&self, event: &DeviceEvent) {
        match event {
            DeviceEvent::Reset | DeviceEvent::Removed => self.resetting.store(true, Ordering::SeqCst),
            DeviceEvent::MediaError { offset, length } => {
                let mut bad = lock(&self.bad);
                if bad.len() >= BAD_RANGES_MAX {
                    *bad = vec![Range::ALL];
                } else {
                    bad.push(Range::new(*offset, *length));
                }
            }
        }
    }

    pub(super) fn clear(&self) {
        self.resetting.store(false, Ordering::SeqCst);
        lock(&self.bad).clear();
    }

    /// Turns direct stretches that the device cannot serve into fallbacks.
    pub(super) fn restrict(&self, decisions: Vec<Decision>) -> Vec<Decision> {
        let resetting = self.resetting.load(Ordering::SeqCst);
        let bad = lock(&self.bad).clone();
        if !resetting && bad.is_empty() {
            return decisions;
        }
        let mut out = Vec::with_capacity(decisions.len());
        for decision in decisions {
            match decision.placement {
                Placement::Direct { .. } if resetting => {
                    push(&mut out, decision.range, Placement::Fallback(Reason::DeviceResetting))
                }
                Placement::Direct { path, device_offset } => {
                    split_bad(&mut out, decision.range, path, device_offset, &bad);
                }
                fallback => push(&mut out, decision.range, fallback),
            }
        }
        out
    }
}

/// Bad stretches are widened to blocks: a window holds whole ones.
fn split_bad(out: &mut Vec<Decision>, range: Range, path: PathKind, device_offset: u64, bad: &[Range]) {
    let block = peerfs_blockdev::BLOCK_BYTES;
    let on_device = Range::new(device_offset, range.length());
    let mut hits: Vec<Range> = bad
        .iter()
        .map(|b| Range { start: b.start / block * block, end: b.end.div_ceil(block).saturating_mul(block) })
        .map(|b| b.intersect(on_device))
        .filter(|hit| !hit.is_empty())
        .collect();
    hits.sort_unstable_by_key(|hit| hit.start);
    let to_object =
        |start: u64, end: u64| Range { start: range.start + (start - device_offset), end: range.start + (end - device_offset) };
    let mut at = device_offset;
    for hit in hits {
        let good_end = hit.start.max(at);
        push(out, to_object(at, good_end), Placement::Direct { path, device_offset: at });
        let bad_end = hit.end.max(good_end);
        push(out, to_object(good_end, bad_end), Placement::Fallback(Reason::MediaError));
        at = bad_end;
    }
    push(out, to_object(at, on_device.end), Placement::Direct { path, device_offset: at });
}
