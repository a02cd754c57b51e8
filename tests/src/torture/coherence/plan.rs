//! Where actors meet: the hot pages of the files, and the cells in them whose values are checked.

use std::path::{Path, PathBuf};

use crate::Random;

pub(super) const PAGE: u64 = 4096;
const PAGES_PER_CHUNK: u64 = 512;
const CHUNKS: u64 = 3;
/// Size of each file, bytes.
pub(super) const FILE_BYTES: u64 = CHUNKS * PAGES_PER_CHUNK * PAGE;
pub(super) const FILES: usize = 3;
/// Hot pages of each chunk: neighbours, one alone, and those at its borders.
const HOT: [u64; 7] = [0, 1, 2, 3, 255, 510, 511];
/// Hot pages of a file.
pub(super) const HOT_PAGES: usize = HOT.len() * CHUNKS as usize;
/// Cells of a page that are checked: at both ends, around a sector's border and around the middle.
pub(super) const CELLS: [u64; 8] = [0, 8, 504, 512, 2040, 2048, 4080, 4088];
/// Checked cells of a file.
pub(super) const FILE_CELLS: usize = HOT_PAGES * CELLS.len();

/// What may happen to a file beside reads and writes. Where pages are taken away nobody stores to views: a store behind
/// the end of a file is neither refused nor kept; and bytes from before a punch were seen in a view after it. The kernel's
/// write-back of such stores, overtaken by the punch, is suspected, and not proved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// Nothing.
    Plain,
    /// Whole pages of the last chunk are punched, zeroed and cut off.
    Pages,
    /// The last chunk is cut off anywhere.
    Anywhere,
}

pub(super) const FATES: [Fate; FILES] = [Fate::Plain, Fate::Pages, Fate::Anywhere];

/// Who may write to a page beside devices. Linux keeps writes past the page cache and stores to a shared view apart only
/// if they are in different pages: write-back writes whole ones. And the kernel fills the pages of a write(2) before it
/// sends it: where a map drops such a page in between, and somebody else stores to it, one of the two is lost, whatever
/// the server does. So a page that is stored to by views has one program that does both, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sort {
    /// Any write(2), also past the page cache.
    Uncached,
    /// Stores to shared views, and buffered writes of the same program.
    Viewed,
}

/// A stretch of checked cells, and the bytes it stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) first: usize,
    pub(super) count: usize,
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// The path of a file in a directory of the mount.
pub(super) fn file_path(directory: &Path, file: usize) -> PathBuf {
    directory.join(format!("shared-{file}"))
}

/// Offset of a hot page in the file, bytes.
pub(super) fn page_offset(hot: usize) -> u64 {
    (hot / HOT.len()) as u64 * PAGES_PER_CHUNK * PAGE + HOT[hot % HOT.len()] * PAGE
}

/// Offset of a cell in the file, bytes.
pub(super) fn cell_offset(cell: usize) -> u64 {
    page_offset(cell / CELLS.len()) + CELLS[cell % CELLS.len()]
}

/// The first hot page of the last chunk.
pub(super) const LAST_CHUNK: usize = HOT.len() * (CHUNKS as usize - 1);

/// What a page is for.
pub(super) fn sort(hot: usize) -> Sort {
    if hot.is_multiple_of(2) { Sort::Uncached } else { Sort::Viewed }
}

/// Some view stores to this hot page of the file.
fn is_stored_to(file: usize, hot: usize) -> bool {
    sort(hot) == Sort::Viewed && (FATES[file] == Fate::Plain || hot < LAST_CHUNK)
}

/// A page that this writer of views has for itself.
pub(super) fn viewed_by(random: &mut Random, writer: u64) -> Span {
    let own: Vec<usize> =
        (0..HOT_PAGES).filter(|hot| sort(*hot) == Sort::Viewed && (*hot as u64 / 2) % 2 == writer % 2).collect();
    pages(*random.pick(&own), 1)
}

/// What somebody who has no page for himself may write with write(2), through the page cache.
pub(super) fn buffered(random: &mut Random, file: usize) -> Span {
    let span = any(random);
    let mut touched = span.first / CELLS.len()..=(span.first + span.count - 1) / CELLS.len();
    if touched.any(|hot| is_stored_to(file, hot)) { of_sort(random, Sort::Uncached) } else { span }
}

/// One cell.
pub(super) fn cell(cell: usize) -> Span {
    Span { first: cell, count: 1, offset: cell_offset(cell), length: 8 }
}

/// Whole pages from a hot one on, as many as follow each other in the file, `most` at most.
pub(super) fn pages(hot: usize, most: usize) -> Span {
    let offset = page_offset(hot);
    let follows = |count: &usize| hot + count < HOT_PAGES && page_offset(hot + count) == offset + *count as u64 * PAGE;
    let count = (1..most).take_while(follows).count() + 1;
    Span { first: hot * CELLS.len(), count: count * CELLS.len(), offset, length: count as u64 * PAGE }
}

/// Everything from a cell on.
pub(super) fn tail(first: usize) -> Span {
    let offset = cell_offset(first);
    Span { first, count: FILE_CELLS - first, offset, length: FILE_BYTES - offset }
}

/// One cell, one page or a few.
pub(super) fn any(random: &mut Random) -> Span {
    match random.below(4) {
        0 | 1 => cell(random.below(FILE_CELLS as u64) as usize),
        2 => pages(random.below(HOT_PAGES as u64) as usize, 1),
        _ => pages(random.below(HOT_PAGES as u64) as usize, 4),
    }
}

/// One cell or one page among those of a sort.
pub(super) fn of_sort(random: &mut Random, wanted: Sort) -> Span {
    let hot = loop {
        let hot = random.below(HOT_PAGES as u64) as usize;
        if sort(hot) == wanted {
            break hot;
        }
    };
    match random.one_in(2) {
        true => cell(hot * CELLS.len() + random.below(CELLS.len() as u64) as usize),
        false => pages(hot, 1),
    }
}

impl Span {
    /// Offsets of its cells from its first byte on.
    pub(super) fn cells(self) -> impl Iterator<Item = (usize, u64)> {
        (self.first..self.first + self.count).map(move |cell| (cell, cell_offset(cell) - self.offset))
    }

    /// Bytes that hold `value` in every word.
    pub(super) fn filled(self, value: u64) -> Vec<u8> {
        value.to_le_bytes().repeat((self.length / 8) as usize)
    }
}
