//! Which device blocks are in which window, and how much of the budget is lent.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::Run;

/// What the index knows of a window.
pub(crate) trait HasRuns {
    /// The blocks it holds.
    fn runs(&self) -> &[Run];
}

/// The windows of an aperture by the blocks in them.
#[derive(Debug)]
pub(crate) struct Index<W> {
    /// By device offset. Entries never overlap.
    runs: BTreeMap<u64, Placed<W>>,
    used_bytes: u64,
    windows: u64,
}

#[derive(Debug)]
struct Placed<W> {
    length: u64,
    window_offset: u64,
    window: Arc<W>,
}

/// A piece of a request. Offsets and lengths in bytes.
#[derive(Debug)]
pub(crate) struct Part<W> {
    pub(crate) offset: u64,
    pub(crate) length: u64,
    /// The window that has it, and where.
    pub(crate) place: Option<(Arc<W>, u64)>,
}

impl<W> Default for Index<W> {
    fn default() -> Self {
        Index { runs: BTreeMap::new(), used_bytes: 0, windows: 0 }
    }
}

impl<W: HasRuns> Index<W> {
    pub(crate) fn used_bytes(&self) -> u64 {
        self.used_bytes
    }

    pub(crate) fn windows(&self) -> u64 {
        self.windows
    }

    /// Takes `length` bytes of the budget, or says how many are missing.
    pub(crate) fn reserve(&mut self, length: u64, capacity: u64) -> Result<(), u64> {
        let wanted = self.used_bytes.saturating_add(length);
        if wanted > capacity {
            return Err(wanted - capacity);
        }
        self.lend(length);
        Ok(())
    }

    /// Counts a window of `length` bytes where there is no budget.
    pub(crate) fn lend(&mut self, length: u64) {
        self.used_bytes += length;
        self.windows += 1;
    }

    pub(crate) fn release(&mut self, length: u64) {
        self.used_bytes -= length;
        self.windows -= 1;
    }

    /// Enters all runs of a window, or none: the first block that is taken already.
    pub(crate) fn insert(&mut self, window: &Arc<W>) -> Result<(), u64> {
        let mut runs: Vec<_> = window.runs().to_vec();
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
            let placed = Placed { length: run.length, window_offset: run.window_offset, window: window.clone() };
            self.runs.insert(run.device_offset, placed);
        }
        Ok(())
    }

    /// Takes the runs of a window out.
    pub(crate) fn remove(&mut self, window: &Arc<W>) {
        for run in window.runs() {
            self.runs.remove(&run.device_offset);
        }
    }

    fn first_in(&self, offset: u64, length: u64) -> Option<u64> {
        let (start, placed) = self.runs.range(..offset + length).next_back()?;
        (start + placed.length > offset).then_some(offset.max(*start))
    }

    /// Cuts a range into pieces that are each in one window or in none.
    pub(crate) fn split(&self, offset: u64, length: u64) -> Vec<Part<W>> {
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
                place: Some((placed.window.clone(), placed.window_offset + (at - start))),
            });
            at = stop;
        }
        if at < end || parts.is_empty() {
            parts.push(Part::raw(at, end - at));
        }
        parts
    }
}

impl<W> Part<W> {
    fn raw(offset: u64, length: u64) -> Self {
        Part { offset, length, place: None }
    }
}
