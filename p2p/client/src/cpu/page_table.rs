//! The device's page table: device virtual page to leaf, in pages of 4 KiB and 2 MiB.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use crate::Mapping;
use crate::mapping::Place;

/// Small page, bytes.
pub(crate) const PAGE: u64 = 4096;
/// Large page, bytes; also what one fault maps at most.
pub(crate) const LARGE_PAGE: u64 = 2 << 20;
const PAGES_PER_TABLE: usize = (LARGE_PAGE / PAGE) as usize;

/// A translation.
#[derive(Clone)]
pub(crate) struct Leaf {
    /// First device address it translates.
    pub(crate) start: u64,
    /// [`PAGE`] or [`LARGE_PAGE`].
    pub(crate) size: u64,
    pub(crate) target: Target,
}

/// Where a leaf leads.
#[derive(Clone)]
pub(crate) enum Target {
    /// Into a grant. `valid` bytes from the start of the leaf on; the rest of the file's last page falls back.
    Direct { mapping: Arc<Mapping>, place: Place, valid: u64 },
    /// Through the filesystem, until it is worth asking again.
    Fallback { mapping: Arc<Mapping>, until: Instant },
}

impl Leaf {
    /// One past the last device address.
    pub(crate) fn end(&self) -> u64 {
        self.start + self.size
    }
}

enum Entry {
    Large(Leaf),
    Table(Box<[Option<Leaf>]>),
}

/// Two levels: 2 MiB entries, each a large leaf or a table of small ones. As wide as the device's addresses: nothing
/// beyond can be entered.
pub(crate) struct PageTable {
    /// One past the last device address.
    limit: u64,
    entries: HashMap<u64, Entry>,
}

impl PageTable {
    /// An empty table for addresses of so many bits.
    pub(crate) fn new(va_bits: u32) -> PageTable {
        PageTable { limit: 1_u64.checked_shl(va_bits).unwrap_or(u64::MAX), entries: HashMap::new() }
    }

    /// One past the last address that can be translated.
    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    /// Walks the table.
    pub(crate) fn lookup(&self, address: u64) -> Option<&Leaf> {
        match self.entries.get(&(address / LARGE_PAGE))? {
            Entry::Large(leaf) => Some(leaf),
            Entry::Table(pages) => pages[page_index(address)].as_ref(),
        }
    }

    /// Enters a leaf and answers the ones it replaces, or the leaf itself when it lies beyond the device's addresses:
    /// dropping them may call the server, so drop them without locks.
    pub(crate) fn insert(&mut self, leaf: Leaf) -> Vec<Leaf> {
        if leaf.end() > self.limit {
            return vec![leaf];
        }
        let number = leaf.start / LARGE_PAGE;
        if leaf.size == LARGE_PAGE {
            return entry_leaves(self.entries.insert(number, Entry::Large(leaf)));
        }
        let mut replaced = Vec::new();
        if matches!(self.entries.get(&number), Some(Entry::Large(_))) {
            replaced = entry_leaves(self.entries.remove(&number));
        }
        let entry = self.entries.entry(number).or_insert_with(empty_table);
        if let Entry::Table(pages) = entry {
            let page = &mut pages[page_index(leaf.start)];
            replaced.extend(page.replace(leaf));
        }
        replaced
    }

    /// Removes every leaf that translates an address of the range, large ones whole.
    pub(crate) fn remove(&mut self, range: &Range<u64>) -> Vec<Leaf> {
        let mut removed = Vec::new();
        let overlapping = |number: &u64| {
            let start = number * LARGE_PAGE;
            start < range.end && range.start < start + LARGE_PAGE
        };
        let numbers: Vec<u64> = self.entries.keys().copied().filter(overlapping).collect();
        for number in numbers {
            let empty = match self.entries.get_mut(&number) {
                Some(Entry::Table(pages)) => {
                    let hit = |leaf: &mut Leaf| leaf.start < range.end && range.start < leaf.end();
                    removed.extend(pages.iter_mut().filter_map(|page| page.take_if(hit)));
                    pages.iter().all(Option::is_none)
                }
                _ => true,
            };
            if empty {
                removed.extend(entry_leaves(self.entries.remove(&number)));
            }
        }
        removed
    }
}

fn page_index(address: u64) -> usize {
    ((address % LARGE_PAGE) / PAGE) as usize
}

fn empty_table() -> Entry {
    Entry::Table((0..PAGES_PER_TABLE).map(|_| None).collect())
}

fn entry_leaves(entry: Option<Entry>) -> Vec<Leaf> {
    match entry {
        None => Vec::new(),
        Some(Entry::Large(leaf)) => vec![leaf],
        Some(Entry::Table(pages)) => pages.into_iter().flatten().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::leaf;

    fn start_at(table: &PageTable, address: u64) -> Option<(u64, u64)> {
        table.lookup(address).map(|leaf| (leaf.start, leaf.size))
    }

    #[test]
    fn small_and_large_leaves_replace_each_other() {
        let mut table = PageTable::new(48);
        assert!(table.insert(leaf(LARGE_PAGE, PAGE)).is_empty());
        assert!(table.insert(leaf(LARGE_PAGE + 3 * PAGE, PAGE)).is_empty());
        assert_eq!(start_at(&table, LARGE_PAGE + PAGE), None);
        assert_eq!(start_at(&table, LARGE_PAGE + PAGE - 1), Some((LARGE_PAGE, PAGE)));
        assert_eq!(table.insert(leaf(LARGE_PAGE, LARGE_PAGE)).len(), 2);
        assert_eq!(start_at(&table, 2 * LARGE_PAGE - 1), Some((LARGE_PAGE, LARGE_PAGE)));
        assert_eq!(table.insert(leaf(LARGE_PAGE + PAGE, PAGE)).len(), 1);
        assert_eq!(start_at(&table, LARGE_PAGE), None);
    }

    #[test]
    fn nothing_is_entered_beyond_the_devices_addresses() {
        let mut table = PageTable::new(22);
        assert_eq!(table.limit(), 2 * LARGE_PAGE);
        assert!(table.insert(leaf(LARGE_PAGE, LARGE_PAGE)).is_empty());
        assert_eq!(table.insert(leaf(2 * LARGE_PAGE, PAGE)).len(), 1);
        assert!(table.lookup(2 * LARGE_PAGE).is_none());
    }

    #[test]
    fn removal_takes_exactly_what_overlaps() {
        let mut table = PageTable::new(48);
        table.insert(leaf(0, LARGE_PAGE));
        for page in 0..4 {
            table.insert(leaf(LARGE_PAGE + page * PAGE, PAGE));
        }
        let removed = table.remove(&(LARGE_PAGE + PAGE..LARGE_PAGE + 2 * PAGE + 1));
        assert_eq!(removed.len(), 2);
        assert!(table.lookup(LARGE_PAGE).is_some());
        assert!(table.lookup(LARGE_PAGE + 3 * PAGE).is_some());
        assert_eq!(table.remove(&(5..6)).len(), 1);
        assert!(table.lookup(0).is_none());
    }
}
