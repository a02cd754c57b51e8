//! The end of a file inside a window: what lies behind it is nobody's, and reads as zeros.
//!
//! A peer that may write can leave bytes between the end of the file and the end of
//! its last block. They must never become content when the file grows, while what the
//! filesystem itself wrote there, before it moves the end, must.

use std::cmp::Ordering::{Equal, Greater, Less};
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rangemap::RangeSet;

/// The end of the file inside a window. Ranges are window offsets in bytes.
#[derive(Debug)]
pub(crate) struct Tail {
    valid_length: u64,
    /// Where the filesystem itself has written at or after `valid_length`: not a peer's leftovers.
    written_beyond: RangeSet<u64>,
}

impl Tail {
    pub(crate) fn new(valid_length: u64) -> Self {
        Tail { valid_length, written_beyond: RangeSet::new() }
    }

    /// The filesystem writes this range.
    pub(crate) fn note_write(&mut self, range: Range<u64>) {
        if range.end > self.valid_length {
            self.written_beyond.insert(range.start.max(self.valid_length)..range.end);
        }
    }

    /// Moves the end of the file. Gives the ranges that have to be cleared: what a peer may have
    /// left beyond the old end when growing, everything beyond the new one when shrinking.
    pub(crate) fn move_end(&mut self, valid_length: u64, length: u64) -> Vec<Range<u64>> {
        let old = std::mem::replace(&mut self.valid_length, valid_length);
        match valid_length.cmp(&old) {
            Equal => Vec::new(),
            Less => {
                self.written_beyond.clear();
                Vec::from([Range { start: valid_length, end: length }])
            }
            Greater => {
                // What the filesystem wrote before it moved the end stays.
                let left = self.written_beyond.gaps(&(old..valid_length)).collect();
                self.written_beyond.remove(0..valid_length);
                left
            }
        }
    }

    pub(crate) fn valid_length(&self) -> u64 {
        self.valid_length
    }

    /// The parts of a range where only a peer can have left anything: behind the end, and not written by the filesystem,
    /// which is about to move the end.
    pub(crate) fn leftovers(&self, range: Range<u64>) -> Vec<Range<u64>> {
        let behind = self.valid_length.clamp(range.start, range.end)..range.end;
        if behind.is_empty() {
            return Vec::new();
        }
        self.written_beyond.gaps(&behind).collect()
    }
}

/// Window offsets that are no longer the owner's. A leaf lock: nothing else is locked, or waited for, under it.
#[derive(Debug, Default)]
pub(crate) struct Disowned(Mutex<RangeSet<u64>>);

impl Disowned {
    pub(crate) fn add(&self, offsets: &[Range<u64>]) {
        let mut disowned = self.lock();
        for offset in offsets.iter().filter(|offset| !offset.is_empty()) {
            disowned.insert(offset.clone());
        }
    }

    /// The parts of a range that are still the owner's.
    pub(crate) fn owned(&self, range: Range<u64>) -> Vec<Range<u64>> {
        if range.is_empty() {
            return Vec::new();
        }
        self.lock().gaps(&range).collect()
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, RangeSet<u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
