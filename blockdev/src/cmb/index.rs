//! Which device blocks are in which window, and how much of the budget is lent.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::window::Core;

#[derive(Debug, Default)]
pub(super) struct Index {
    /// By device offset. Entries never overlap.
    runs: BTreeMap<u64, Placed>,
    used_bytes: u64,
    windows: u64,
}

#[derive(Debug)]
struct Placed {
    length: u64,
    window_offset: u64,
    core: Arc<Core>,
}

/// A piece of a request. Offsets and lengths in bytes.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) offset: u64,
    pub(super) length: u64,
    /// The window that has it, and where.
    pub(super) place: Option<(Arc<Core>, u64)>,
}

impl Index {
    pub(super) fn used_bytes(&self) -> u64 {
        self.used_bytes
    }

    pub(super) fn windows(&self) -> u64 {
        self.windows
    }

    /// Takes `length` bytes of the budget, or says how many are missing.
    pub(super) fn reserve(&mut self, length: u64, capacity: u64) -> Result<(), u64> {
        let wanted = self.used_bytes.saturating_add(length);
        if wanted > capacity {
            return Err(wanted - capacity);
        }
        self.used_bytes = wanted;
        self.windows += 1;
        Ok(())
    }

    pub(super) fn release(&mut self, length: u64) {
        self.used_bytes -= length;
        self.windows -= 1;
    }

    /// Enters all runs of a window, or none: the first block that is taken already.
    pub(super) fn insert(&mut self, core: &Arc<Core>) -> Result<(), u64> {
        let mut runs: Vec<_> = core.runs().to_vec();
        runs.sort_by_key(|run| run.device_offset);
        let twice = runs
            .windows(2)
            .find(|pair| pair[0].device_offset + pair[0].length > pair[1].device_offset)
            .map(|pair| pair[1].device_offset);
        let taken = runs.iter().find_map(|run| self.first_in(run.device_offset, run.length));
        if let Some(offset) = twice.or(taken) {
            return Err(offset);
        }
        for run in runs {
            let placed = Placed { length: run.length, window_offset: run.window_offset, core: core.clone() };
            self.runs.insert(run.device_offset, placed);
        }
        Ok(())
    }

    /// Takes the runs of a window out.
    pub(super) fn remove(&mut self, core: &Arc<Core>) {
        for run in core.runs() {
            self.runs.remove(&run.device_offset);
        }
    }

    fn first_in(&self, offset: u64, length: u64) -> Option<u64> {
        let (start, placed) = self.runs.range(..offset + length).next_back()?;
        (start + placed.length > offset).then_some(offset.max(*start))
    }

    /// Cuts a range into pieces that are each in one window or in none.
    pub(super) fn split(&self, offset: u64, length: u64) -> Vec<Part> {
        let end = offset + length;
        let first = self.runs.range(..=offset).next_back().map_or(offset, |(start, _)| *start);
        let mut parts = Vec::new();
        let mut at = offset;
        for (start, placed) in self.runs.range(first..end) {
            let stop = (start + placed.length).min(end);
            if stop <= at {
                continue;
            }
            if *start > at {
                parts.push(Part::raw(at, start - at));
                at = *start;
            }
            parts.push(Part {
                offset: at,
                length: stop - at,
                place: Some((placed.core.clone(), placed.window_offset + (at - start))),
            });
            at = stop;
        }
        if at < end || parts.is_empty() {
            parts.push(Part::raw(at, end - at));
        }
        parts
    }
}

impl Part {
    fn raw(offset: u64, length: u64) -> Self {
        Part { offset, length, place: None }
    }
}
