//! A write(2) and the kernel's write-back of the same pages.
//!
//! A buffered write(2) changes cached pages and lets go of them before its WRITE is carried out. A store through a shared
//! mapping may make a page dirty meanwhile, and the kernel write it back: a second WRITE, which has what both have
//! written. The kernel lets a write(2) wait for write-back under way, but not the other way round, and requests are
//! carried out side by side; if the older one came last, the store would be gone. So write-back waits for a write(2) of
//! the same pages that has arrived; and a write(2) that arrives later than a newer write-back (requests are numbered in
//! their order) leaves out what that has written.
//!
//! Neither waits for a page: no circle.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use peerfs_p2p::Range;

use super::inode::Inode;
use crate::sync::lock;
use crate::types::WriteOrigin;

/// Write-backs remembered. A write(2) that is overtaken by more of them is not told from one that is not.
const REMEMBERED_MAX: usize = 64;

/// The number of a request, and what it writes.
type Numbered = (u64, Range);

#[derive(Debug, Default)]
struct State {
    /// Buffered writes that have arrived and are not carried out.
    writing: Vec<Numbered>,
    /// Write-backs that are being carried out.
    writing_back: Vec<Numbered>,
    /// Write-backs that were carried out.
    written_back: VecDeque<Numbered>,
}

/// The order of writes of one file.
#[derive(Debug, Default)]
pub(super) struct WriteOrder {
    state: Mutex<State>,
    changed: Condvar,
}

impl State {
    fn is_writing(&self, range: Range) -> bool {
        self.writing.iter().any(|(_, writing)| writing.overlaps(range))
    }

    fn is_overtaken(&self, (number, range): Numbered) -> bool {
        self.writing_back.iter().any(|(newer, other)| *newer > number && other.overlaps(range))
    }

    /// What no newer write-back has written of a range, in order.
    fn left_of(&self, (number, range): Numbered) -> Vec<Range> {
        let mut left = vec![range];
        for (_, newer) in self.written_back.iter().filter(|(newer, _)| *newer > number) {
            left = left.into_iter().flat_map(|part| without(part, *newer)).collect();
        }
        left
    }

    fn remember(&mut self, write_back: Numbered) {
        self.written_back.push_back(write_back);
        if self.written_back.len() > REMEMBERED_MAX {
            self.written_back.pop_front();
        }
    }
}

fn without(range: Range, taken: Range) -> impl Iterator<Item = Range> {
    let before = Range { end: range.end.min(taken.start), ..range };
    let after = Range { start: range.start.max(taken.end), ..range };
    let parts = if range.overlaps(taken) { [Some(before), Some(after)] } else { [Some(range), None] };
    parts.into_iter().flatten().filter(|part| part.start < part.end)
}

/// A buffered write that has arrived, until this is dropped.
pub(super) struct Arrived(Arc<Inode>, Numbered);

impl Arrived {
    pub(super) fn new(inode: Arc<Inode>, number: u64, range: Range) -> Arrived {
        lock(&inode.write_order.state).writing.push((number, range));
        Arrived(inode, (number, range))
    }
}

impl Drop for Arrived {
    fn drop(&mut self) {
        let order = &self.0.write_order;
        take_out(&mut lock(&order.state).writing, self.1);
        order.changed.notify_all();
    }
}

/// A write-back that is being carried out, until this is dropped.
struct WritingBack<'a>(&'a WriteOrder, Numbered);

impl Drop for WritingBack<'_> {
    fn drop(&mut self) {
        take_out(&mut lock(&self.0.state).writing_back, self.1);
        self.0.changed.notify_all();
    }
}

fn take_out(list: &mut Vec<Numbered>, entry: Numbered) {
    if let Some(at) = list.iter().position(|found| *found == entry) {
        list.swap_remove(at);
    }
}

impl WriteOrder {
    /// Write-back of the range has to wait for a write(2).
    pub(super) fn is_writing(&self, range: Range) -> bool {
        lock(&self.state).is_writing(range)
    }

    /// Carries out a write-back with `work`, after every write(2) of the range that has arrived.
    pub(super) fn write_back<T, E>(&self, entry: Numbered, work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        {
            let mut state = lock(&self.state);
            while state.is_writing(entry.1) {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            state.writing_back.push(entry);
        }
        let under_way = WritingBack(self, entry);
        let done = work();
        if done.is_ok() {
            lock(&self.state).remember(entry);
        }
        drop(under_way);
        done
    }

    /// What a write(2) still has to write: all of it, but for what newer write-backs have written.
    pub(super) fn left_to_write(&self, entry: Numbered) -> Vec<Range> {
        let mut state = lock(&self.state);
        while state.is_overtaken(entry) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.left_of(entry)
    }
}

impl WriteOrigin {
    /// The number of the request, where it may meet others of the same pages.
    pub(super) fn numbered(self, range: Range) -> Numbered {
        (self.number, range)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn pages(from: u64, to: u64) -> Range {
        Range { start: from * 4096, end: to * 4096 }
    }

    #[test]
    fn a_late_write_leaves_out_what_newer_write_backs_have_written() {
        let order = WriteOrder::default();
        for (number, range) in [(4, pages(0, 9)), (12, pages(2, 3)), (14, pages(5, 6)), (16, pages(9, 20))] {
            order.write_back((number, range), || Ok::<_, ()>(())).expect("it succeeds");
        }
        assert_eq!(order.left_to_write((10, pages(1, 10))), [pages(1, 2), pages(3, 5), pages(6, 9)]);
        assert_eq!(order.left_to_write((10, pages(2, 3))), []);
        assert_eq!(order.left_to_write((18, pages(0, 30))), [pages(0, 30)], "it is the newest");
    }

    #[test]
    fn a_write_back_that_failed_has_written_nothing_and_old_ones_are_forgotten() {
        let order = WriteOrder::default();
        order.write_back((12, pages(0, 1)), || Err::<(), _>(())).expect_err("it fails");
        assert_eq!(order.left_to_write((10, pages(0, 1))), [pages(0, 1)]);
        for number in 0..=REMEMBERED_MAX as u64 {
            order.write_back((100 + number, pages(number, number + 1)), || Ok::<_, ()>(())).expect("it succeeds");
        }
        assert_eq!(lock(&order.state).written_back.len(), REMEMBERED_MAX);
        assert!(lock(&order.state).writing_back.is_empty());
    }

    #[test]
    fn a_late_write_waits_for_the_write_back_that_overtook_it() {
        let order = WriteOrder::default();
        let (begun, end) = (std::sync::Barrier::new(2), std::sync::Barrier::new(2));
        thread::scope(|scope| {
            scope.spawn(|| {
                order.write_back((12, pages(0, 1)), || {
                    begun.wait();
                    end.wait();
                    Ok::<_, ()>(())
                })
            });
            begun.wait();
            assert_eq!(order.left_to_write((10, pages(1, 2))), [pages(1, 2)], "elsewhere");
            let late = scope.spawn(|| order.left_to_write((10, pages(0, 2))));
            end.wait();
            assert_eq!(late.join().expect("no panic"), [pages(1, 2)]);
        });
    }
}
