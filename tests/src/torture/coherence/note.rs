//! What actors note of their reads and writes, and how it reaches the checker.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::plan::Span;

/// How bytes were moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Way {
    Prepared,
    Buffered,
    Unbuffered,
    Toggled,
    View,
    Copying,
    Guard,
    Faulting,
    Truncate,
    Punch,
    Settled,
}

const WAYS: [Way; 11] = [
    Way::Prepared,
    Way::Buffered,
    Way::Unbuffered,
    Way::Toggled,
    Way::View,
    Way::Copying,
    Way::Guard,
    Way::Faulting,
    Way::Truncate,
    Way::Punch,
    Way::Settled,
];

/// The end of a write that failed on the way: it may take effect at any time.
pub(super) const NEVER: u64 = u64::MAX;

/// One read or write. Times are of the monotonic clock, in nanoseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Note {
    pub(super) actor: u64,
    pub(super) way: Way,
    pub(super) file: usize,
    pub(super) first: usize,
    pub(super) begin: u64,
    pub(super) end: u64,
    pub(super) deed: Deed,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Deed {
    /// The same value into so many cells.
    Write { value: u64, count: usize },
    /// What the cells held.
    Read(Vec<u64>),
}

/// Now, on the clock that all processes share, in nanoseconds.
pub(super) fn now() -> u64 {
    let time =
        nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).unwrap_or_else(|_| nix::sys::time::TimeSpec::new(0, 0));
    time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
}

/// The notes of one actor.
#[derive(Debug, Default)]
pub(super) struct Notebook {
    pub(super) actor: u64,
    words: Vec<u64>,
}

/// So many words of notes, and an actor rests until the round ends.
const WORDS_MAX: usize = 4 << 20;
const WRITE_TAG: u64 = 1 << 16;

impl Notebook {
    pub(super) fn new(actor: u64) -> Notebook {
        Notebook { actor, words: Vec::new() }
    }

    pub(super) fn is_full(&self) -> bool {
        self.words.len() >= WORDS_MAX
    }

    pub(super) fn wrote(&mut self, way: Way, file: usize, span: Span, value: u64, begin: u64, end: u64) {
        self.head(way, file, span.first, begin, end, WRITE_TAG);
        self.words.extend([span.count as u64, value]);
    }

    pub(super) fn read(&mut self, way: Way, file: usize, first: usize, begin: u64, end: u64, values: &[u64]) {
        if values.is_empty() {
            return;
        }
        self.head(way, file, first, begin, end, 0);
        self.words.push(values.len() as u64);
        self.words.extend(values);
    }

    fn head(&mut self, way: Way, file: usize, first: usize, begin: u64, end: u64, tag: u64) {
        self.words.extend([way as u64 | (file as u64) << 8 | tag, first as u64, begin, end]);
    }

    /// Hands the notes over in a file, and begins anew.
    pub(super) fn save(&mut self, path: &Path) -> Result<()> {
        let bytes: Vec<u8> = self.words.drain(..).flat_map(u64::to_le_bytes).collect();
        Ok(File::create(path)?.write_all(&bytes)?)
    }
}

/// Reads what [`Notebook::save`] wrote, and removes it.
pub(super) fn collect(path: &Path, actor: u64) -> Result<Vec<Note>> {
    let bytes = fs::read(path).with_context(|| format!("the notes of actor {actor}"))?;
    fs::remove_file(path)?;
    let words: Vec<u64> = bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap_or_default())).collect();
    let mut rest = &words[..];
    let mut notes = Vec::new();
    while let [head, first, begin, end, count, tail @ ..] = rest {
        let way = *WAYS.get((head & 0xFF) as usize).context("a note of no known way")?;
        let file = (head >> 8 & 0xFF) as usize;
        let (deed, after) = match head & WRITE_TAG {
            0 => {
                ensure!(tail.len() >= *count as usize, "a note is cut short");
                let (values, after) = tail.split_at(*count as usize);
                (Deed::Read(values.to_vec()), after)
            }
            _ => {
                let (value, after) = tail.split_first().context("a note is cut short")?;
                (Deed::Write { value: *value, count: *count as usize }, after)
            }
        };
        notes.push(Note { actor, way, file, first: *first as usize, begin: *begin, end: *end, deed });
        rest = after;
    }
    ensure!(rest.is_empty(), "a note is cut short");
    Ok(notes)
}
