//! Is every value that was read one that some legal order explains?
//!
//! A read that lasted from `s` to `e` may return the value of a write `w` of the same cell if `w` began before `e`,
//! and no other write lies wholly between the end of `w` and `s`. Cells are 8 aligned bytes; a longer read may be torn
//! between cells. Values are unique, but for zeros, which every hole and every extension reads as.

use std::fmt::Write as _;

use super::note::{Deed, NEVER, Note, Way};
use super::plan::{CELLS, FILE_CELLS, FILES, cell_offset};

#[derive(Debug, Clone, Copy)]
struct Write {
    begin: u64,
    end: u64,
    value: u64,
    way: Way,
    actor: u64,
}

#[derive(Debug, Clone, Copy)]
struct Read {
    begin: u64,
    end: u64,
    value: u64,
    way: Way,
    actor: u64,
}

#[derive(Debug, Default, Clone)]
struct History {
    writes: Vec<Write>,
    reads: Vec<Read>,
}

/// Values of all cells at a moment at which nothing happened.
pub(super) type Values = Vec<Vec<u64>>;

/// How many writes of a history are shown around an illegal read.
const SHOWN: usize = 24;

/// Checks the notes of one round. `before`: what all cells held at its start.
///
/// # Errors
/// The first illegal read with the history of its cell, as text.
pub(super) fn check(before: &Values, notes: &[Note]) -> Result<u64, String> {
    let mut histories = vec![vec![History::default(); FILE_CELLS]; FILES];
    for (history, value) in histories.iter_mut().flatten().zip(before.iter().flatten()) {
        history.writes.push(Write { begin: 0, end: 0, value: *value, way: Way::Prepared, actor: 0 });
    }
    for note in notes {
        let (begin, end, way, actor) = (note.begin, note.end, note.way, note.actor);
        match &note.deed {
            Deed::Write { value, count } => {
                let write = Write { begin, end, value: *value, way, actor };
                histories[note.file][note.first..note.first + count].iter_mut().for_each(|history| history.writes.push(write));
            }
            Deed::Read(values) => {
                for (history, value) in histories[note.file][note.first..].iter_mut().zip(values) {
                    history.reads.push(Read { begin, end, value: *value, way, actor });
                }
            }
        }
    }
    let mut checked = 0;
    let mut earliest: Option<(u64, (usize, usize, Read))> = None;
    for (file, cells) in histories.iter_mut().enumerate() {
        for (cell, history) in cells.iter_mut().enumerate() {
            checked += history.reads.len() as u64;
            if let Some(read) = history.first_illegal()
                && earliest.as_ref().is_none_or(|(end, _)| read.end < *end)
            {
                earliest = Some((read.end, (file, cell, read)));
            }
        }
    }
    match earliest {
        None => Ok(checked),
        Some((_, (file, cell, read))) => {
            let history = &histories[file][cell];
            Err(history.describe(file, cell, &read) + &neighbours(&histories[file], cell, history.origin(&read), &read))
        }
    }
}

impl History {
    /// Of the reads that nothing explains, the one that ended first.
    fn first_illegal(&mut self) -> Option<Read> {
        self.writes.sort_by_key(|write| write.begin);
        // The earliest end among this write and all that began later.
        let mut earliest_end: Vec<u64> = self.writes.iter().map(|write| write.end).collect();
        for at in (1..earliest_end.len()).rev() {
            earliest_end[at - 1] = earliest_end[at - 1].min(earliest_end[at]);
        }
        let mut by_value: Vec<&Write> = self.writes.iter().collect();
        by_value.sort_by_key(|write| write.value);
        let explains = |write: &Write, read: &Read| {
            let later = self.writes.partition_point(|other| other.begin <= write.end);
            let overwritten = earliest_end.get(later).is_some_and(|end| *end < read.begin);
            write.begin < read.end && !overwritten
        };
        let legal = |read: &&Read| {
            let from = by_value.partition_point(|write| write.value < read.value);
            by_value[from..].iter().take_while(|write| write.value == read.value).any(|write| explains(write, read))
        };
        self.reads.iter().filter(|read| !legal(read)).min_by_key(|read| read.end).copied()
    }

    /// When what was read began to be written.
    fn origin(&self, read: &Read) -> u64 {
        self.writes.iter().rfind(|write| write.value == read.value && write.begin < read.end).map_or(0, |write| write.begin)
    }

    fn describe(&self, file: usize, cell: usize, read: &Read) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "illegal read of file {file} at byte {:#x} (cell {cell}): actor {} read {:#x} by {:?}, {}",
            cell_offset(cell),
            read.actor,
            read.value,
            read.way,
            interval(read.begin, read.end)
        );
        let from = self.origin(read);
        let lines = |begin: u64, end: u64| end >= from && begin <= read.end.saturating_add(2_000_000);
        let mut events: Vec<(u64, String)> = Vec::new();
        for write in self.writes.iter().filter(|write| lines(write.begin, write.end)) {
            let what = format!("write {:#x} by {:?}, actor {}", write.value, write.way, write.actor);
            events.push((write.begin, format!("  {} {what}", interval(write.begin, write.end))));
        }
        for read in self.reads.iter().filter(|read| lines(read.begin, read.end)) {
            let what = format!("  read {:#x} by {:?}, actor {}", read.value, read.way, read.actor);
            events.push((read.begin, format!("  {} {what}", interval(read.begin, read.end))));
        }
        events.sort();
        let skipped = events.len().saturating_sub(SHOWN);
        for (_, line) in events.iter().take(SHOWN / 2).chain(events.iter().skip(skipped.max(SHOWN / 2))) {
            let _ = writeln!(text, "{line}");
        }
        let _ = write!(text, "  ({} events, {} shown)", events.len(), events.len().min(SHOWN));
        text
    }
}

/// What was done to the other cells of the page meanwhile: the kernel and the server move whole pages and blocks.
fn neighbours(cells: &[History], cell: usize, from: u64, read: &Read) -> String {
    let first = cell - cell % CELLS.len();
    let mut events: Vec<(u64, String)> = Vec::new();
    for (place, history) in cells.iter().enumerate().skip(first).take(CELLS.len()).filter(|(place, _)| *place != cell) {
        for write in history.writes.iter().filter(|write| write.end >= from && write.begin <= read.end) {
            let what = format!("write {:#x} by {:?}, actor {}", write.value, write.way, write.actor);
            events.push((write.begin, format!("  {} cell {place}: {what}", interval(write.begin, write.end))));
        }
        for read in history.reads.iter().filter(|other| other.end >= from && other.begin <= read.end) {
            let what = format!("  read {:#x} by {:?}, actor {}", read.value, read.way, read.actor);
            events.push((read.begin, format!("  {} cell {place}: {what}", interval(read.begin, read.end))));
        }
    }
    events.sort();
    let skipped = events.len().saturating_sub(SHOWN);
    let shown = events.iter().skip(skipped).map(|(_, line)| line.as_str());
    let lines: Vec<&str> = std::iter::once("\n  in the same page, before it:").chain(shown).collect();
    lines.join("\n")
}

fn interval(begin: u64, end: u64) -> String {
    match end {
        NEVER => format!("[{} .. ?]", begin / 1000),
        _ => format!("[{} +{} us]", begin / 1000, (end - begin) / 1000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(value: u64, begin: u64, end: u64) -> Note {
        Note { actor: 1, way: Way::Buffered, file: 0, first: 3, begin, end, deed: Deed::Write { value, count: 2 } }
    }

    fn read(value: u64, begin: u64, end: u64) -> Note {
        Note { actor: 2, way: Way::View, file: 0, first: 4, begin, end, deed: Deed::Read(vec![value]) }
    }

    fn verdict(notes: &[Note]) -> bool {
        check(&vec![vec![9; FILE_CELLS]; FILES], notes).is_ok()
    }

    #[test]
    fn a_write_is_seen_from_its_end_on_and_until_the_next_ends() {
        assert!(verdict(&[read(9, 1, 2), write(5, 10, 20), read(5, 21, 22)]));
        assert!(!verdict(&[write(5, 10, 20), read(9, 21, 22)]), "stale");
        assert!(!verdict(&[write(5, 10, 20), read(5, 1, 9)]), "before it was written");
        assert!(!verdict(&[write(5, 10, 20), read(6, 21, 22)]), "never written");
        assert!(verdict(&[write(5, 10, 20), read(9, 15, 22), read(5, 15, 16)]), "meanwhile either");
    }

    #[test]
    fn writes_at_the_same_time_may_take_either_order() {
        let both = [write(5, 10, 30), write(6, 20, 40)];
        assert!(verdict(&[both[0].clone(), both[1].clone(), read(5, 50, 60)]));
        assert!(verdict(&[both[0].clone(), both[1].clone(), read(6, 50, 60)]));
        assert!(!verdict(&[both[0].clone(), both[1].clone(), write(7, 41, 45), read(5, 50, 60)]));
    }

    #[test]
    fn a_failed_write_may_be_seen_or_not() {
        assert!(verdict(&[write(5, 10, NEVER), read(9, 50, 60)]));
        assert!(verdict(&[write(5, 10, NEVER), read(5, 50, 60)]));
        assert!(verdict(&[write(0, 10, 20), write(5, 30, 31), write(0, 40, 41), read(0, 50, 60)]), "any of the zeros");
    }
}
