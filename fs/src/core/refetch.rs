//! Pages that come back into the kernel's cache while a write(2) of them is under way.
//!
//! A buffered write(2) changes the cached pages first, lets go of them, and then sends its WRITE. If a device's map
//! drops the pages in between, a READ brings the old bytes back, and they would stay for ever. The kernel has one
//! such WRITE of a file under way at a time. So, from the moment pages are dropped until the next WRITE has been
//! carried out, READs wait for a WRITE of the same pages that is under way here; and those that came just before it are
//! remembered, and their pages are dropped again before it is answered.
//!
//! The kernel may also write pages back while a write(2) of them is under way: a second WRITE, which has what both have
//! written, since the kernel lets a write(2) wait for write-back and not the other way round. Requests are carried out side
//! by side, and if the older one came last, a store would be gone. So write-back waits for a write(2) that has arrived.
//!
//! READs and write-backs wait for what the WRITE does here, never for its answer, and the WRITE waits for no page: no circle.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

use peerfs_p2p::Range;

use super::Core;
use super::inode::Inode;
use crate::ops::Refetched;
use crate::sync::lock;
use crate::types::Ino;

/// More ranges than these are remembered as one that spans them all.
const RANGES_MAX: usize = 64;

/// What is remembered of one file.
#[derive(Debug, Default)]
pub(super) struct Refetches {
    /// Calls that drop pages at present.
    dropping: u32,
    /// Pages were dropped since the last WRITE.
    watching: bool,
    /// Reads into the cache meanwhile.
    reads: Vec<Range>,
    /// Buffered writes that have arrived and are not carried out.
    writing: Vec<Range>,
}

/// [`Refetches`] of one file, and those who wait for its writes.
#[derive(Debug, Default)]
pub(super) struct RefetchWatch {
    state: Mutex<Refetches>,
    written: Condvar,
}

impl Refetches {
    fn begin(&mut self) {
        self.dropping += 1;
        self.watching = true;
    }

    fn end(&mut self) {
        self.dropping -= 1;
    }

    fn note(&mut self, range: Range) {
        if !self.watching {
            return;
        }
        self.reads.push(range);
        if self.reads.len() > RANGES_MAX {
            let hull = self.reads.drain(..).reduce(|a, b| Range { start: a.start.min(b.start), end: a.end.max(b.end) });
            self.reads.extend(hull);
        }
    }

    fn is_writing(&self, range: Range) -> bool {
        self.writing.iter().any(|writing| writing.overlaps(range))
    }

    /// A read of the range would bring back what is being written.
    fn is_in_doubt(&self, range: Range) -> bool {
        self.watching && self.is_writing(range)
    }

    /// Those inside a range that was written; then the others are of no interest either.
    fn take(&mut self, written: Range) -> Vec<Range> {
        self.watching = self.dropping > 0;
        self.reads.drain(..).map(|range| range.intersect(written)).filter(|common| !common.is_empty()).collect()
    }
}

/// Pages of a file are being dropped until this is dropped itself.
#[derive(Debug)]
pub struct Dropping(Arc<Inode>);

impl Drop for Dropping {
    fn drop(&mut self) {
        lock(&self.0.refetches.state).end();
    }
}

/// A buffered write is under way until this is dropped.
struct Writing {
    inode: Arc<Inode>,
    range: Range,
}

impl Drop for Writing {
    fn drop(&mut self) {
        let mut state = lock(&self.inode.refetches.state);
        if let Some(at) = state.writing.iter().position(|range| *range == self.range) {
            state.writing.swap_remove(at);
        }
        drop(state);
        self.inode.refetches.written.notify_all();
    }
}

impl Core {
    /// To be held while cached pages of a file are dropped. `None`: nobody uses the file.
    pub fn dropping_pages(&self, ino: Ino) -> Option<Dropping> {
        let inode = self.known_inode(ino)?;
        lock(&inode.refetches.state).begin();
        Some(Dropping(inode))
    }

    /// A buffered write(2) has arrived: to be held until it is carried out.
    pub(super) fn begin_buffered_write(&self, ino: Ino, range: Range) -> Option<Box<dyn Send>> {
        let inode = self.cache.peek(ino)?;
        lock(&inode.refetches.state).writing.push(range);
        Some(Box::new(Writing { inode, range }))
    }

    /// The kernel writes pages back: what they hold is newer than a write(2) of them that has arrived.
    pub(super) fn await_buffered_writes(inode: &Inode, range: Range) {
        let mut state = lock(&inode.refetches.state);
        while state.is_writing(range) {
            state = inode.refetches.written.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A READ into the page cache begins. It waits for writes of what it is about to read.
    pub(super) fn note_cached_read(inode: &Inode, range: Range) {
        let mut state = lock(&inode.refetches.state);
        while state.is_in_doubt(range) {
            state = inode.refetches.written.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.note(range);
    }

    /// Reads of the file may have to wait for writes of it.
    pub(super) fn is_being_refetched(&self, ino: Ino) -> bool {
        self.cache.peek(ino).is_some_and(|inode| {
            let state = lock(&inode.refetches.state);
            state.watching && !state.writing.is_empty()
        })
    }

    /// A buffered write(2) was carried out: pages of it that may hold what was there before.
    pub(super) fn take_refetched(&self, ino: Ino, written: Range) -> Option<Refetched> {
        let inode = self.cache.peek(ino)?;
        let mut refetches = lock(&inode.refetches.state);
        let ranges = refetches.take(written);
        if ranges.is_empty() {
            return None;
        }
        refetches.begin();
        drop(refetches);
        Some(Refetched { ranges, dropping: Box::new(Dropping(inode)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RANGE: Range = Range { start: 4096, end: 8192 };

    #[test]
    fn reads_count_from_the_drop_until_the_next_write() {
        let mut refetches = Refetches::default();
        refetches.note(RANGE);
        assert!(refetches.take(RANGE).is_empty(), "nothing was dropped");
        refetches.begin();
        refetches.end();
        refetches.note(RANGE);
        assert_eq!(refetches.take(Range { start: 5000, end: 9000 }), [Range { start: 5000, end: 8192 }]);
        refetches.note(RANGE);
        assert!(refetches.take(RANGE).is_empty(), "the write that was under way has ended");
    }

    #[test]
    fn a_drop_that_is_still_under_way_concerns_the_write_after_the_next_too() {
        let mut refetches = Refetches::default();
        refetches.begin();
        assert!(refetches.take(RANGE).is_empty());
        refetches.note(RANGE);
        refetches.end();
        assert_eq!(refetches.take(RANGE), [RANGE]);
    }

    #[test]
    fn only_reads_of_what_is_being_written_wait_and_only_after_a_drop() {
        let mut refetches = Refetches::default();
        refetches.writing.push(RANGE);
        assert!(!refetches.is_in_doubt(RANGE) && refetches.is_writing(RANGE), "write-back waits all the same");
        refetches.begin();
        refetches.end();
        assert!(refetches.is_in_doubt(Range::new(8000, 1)));
        assert!(!refetches.is_in_doubt(Range::new(8192, 1)));
        refetches.writing.clear();
        assert!(!refetches.is_in_doubt(RANGE));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut refetches = Refetches::default();
        refetches.begin();
        (0..1000).for_each(|at| refetches.note(Range::new(at * 8192, 4096)));
        assert!(refetches.reads.len() <= RANGES_MAX);
        assert!(!refetches.take(Range::new(500 * 8192, 4096)).is_empty());
    }
}
