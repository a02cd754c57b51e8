//! The device's translation cache: set-associative, least recently used way goes first.

use std::ops::Range;

use super::page_table::{LARGE_PAGE, Leaf, PAGE};

struct Way {
    leaf: Leaf,
    last_use: u64,
}

/// Small and large translations share the sets, each under its own page number.
pub(crate) struct TranslationCache {
    sets: Vec<Vec<Way>>,
    ways: usize,
    clock: u64,
}

impl TranslationCache {
    /// At least one set of one way.
    pub(crate) fn new(sets: usize, ways: usize) -> TranslationCache {
        TranslationCache { sets: (0..sets.max(1)).map(|_| Vec::new()).collect(), ways: ways.max(1), clock: 0 }
    }

    /// The translation of an address, if it is here.
    pub(crate) fn lookup(&mut self, address: u64) -> Option<Leaf> {
        self.clock += 1;
        let clock = self.clock;
        for size in [PAGE, LARGE_PAGE] {
            let set = self.set(address, size);
            let hit = |way: &&mut Way| way.leaf.size == size && (way.leaf.start..way.leaf.end()).contains(&address);
            if let Some(way) = set.iter_mut().find(hit) {
                way.last_use = clock;
                return Some(way.leaf.clone());
            }
        }
        None
    }

    /// Enters a translation and answers the one that had to leave, to be dropped without locks.
    pub(crate) fn insert(&mut self, leaf: Leaf) -> Option<Leaf> {
        self.clock += 1;
        let (ways, last_use) = (self.ways, self.clock);
        let set = self.set(leaf.start, leaf.size);
        let way = Way { leaf, last_use };
        if set.len() < ways {
            set.push(way);
            return None;
        }
        let oldest = set.iter_mut().min_by_key(|way| way.last_use)?;
        Some(std::mem::replace(oldest, way).leaf)
    }

    /// Shoots down what translates an address of the range.
    pub(crate) fn remove(&mut self, range: &Range<u64>) -> Vec<Leaf> {
        let mut removed = Vec::new();
        for set in &mut self.sets {
            let hit = |way: &mut Way| way.leaf.start < range.end && range.start < way.leaf.end();
            removed.extend(set.extract_if(.., hit).map(|way| way.leaf));
        }
        removed
    }

    fn set(&mut self, address: u64, size: u64) -> &mut Vec<Way> {
        let index = (address / size) % self.sets.len() as u64;
        &mut self.sets[index as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::leaf;

    #[test]
    fn the_least_recently_used_way_leaves() {
        let mut cache = TranslationCache::new(4, 2);
        let same_set = |n: u64| n * 4 * PAGE;
        assert!(cache.insert(leaf(same_set(0), PAGE)).is_none());
        assert!(cache.insert(leaf(same_set(1), PAGE)).is_none());
        assert!(cache.lookup(same_set(0) + 17).is_some());
        let gone = cache.insert(leaf(same_set(2), PAGE)).map(|leaf| leaf.start);
        assert_eq!(gone, Some(same_set(1)));
        assert!(cache.lookup(same_set(1)).is_none());
        assert!(cache.lookup(same_set(2)).is_some());
    }

    #[test]
    fn shootdown_finds_large_pages_from_any_address_inside() {
        let mut cache = TranslationCache::new(8, 4);
        cache.insert(leaf(LARGE_PAGE, LARGE_PAGE));
        cache.insert(leaf(0, PAGE));
        assert!(cache.lookup(LARGE_PAGE + 77 * PAGE).is_some());
        assert_eq!(cache.remove(&(LARGE_PAGE + 5..LARGE_PAGE + 6)).len(), 1);
        assert!(cache.lookup(LARGE_PAGE).is_none());
        assert!(cache.lookup(PAGE - 1).is_some());
    }
}
