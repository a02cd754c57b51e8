//! The last so many of something, for people to look at.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::sync::{Mutex, lock};

/// An entry and its number.
type Place<T> = Mutex<Option<(u64, T)>>;

/// Keeps the youngest entries, each with its number. A place of its own for each, so those who add do not meet at a lock.
#[derive(Debug)]
pub(super) struct Ring<T> {
    places: Box<[Place<T>]>,
    next: AtomicUsize,
}

impl<T: Copy> Ring<T> {
    /// Keeps as many as `kept`, one at least.
    pub(super) fn new(kept: usize) -> Ring<T> {
        Ring { places: (0..kept.max(1)).map(|_| Mutex::default()).collect(), next: AtomicUsize::new(0) }
    }

    pub(super) fn push(&self, entry: T) {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        *lock(&self.places[number % self.places.len()]) = Some((number as u64, entry));
    }

    /// What is kept, with how many there were before each.
    pub(super) fn newest_first(&self) -> Vec<(u64, T)> {
        let (kept, next) = (self.places.len(), self.next.load(Ordering::Relaxed));
        let newest_first = (1..=kept).map(|back| &self.places[(next % kept + kept - back) % kept]);
        newest_first.filter_map(|place| *lock(place)).collect()
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn the_youngest_stay_and_know_their_numbers() {
        let ring = Ring::new(3);
        assert!(ring.newest_first().is_empty());
        ('a'..='b').for_each(|entry| ring.push(entry));
        assert_eq!(ring.newest_first(), [(1, 'b'), (0, 'a')]);
        ('c'..='e').for_each(|entry| ring.push(entry));
        assert_eq!(ring.newest_first(), [(4, 'e'), (3, 'd'), (2, 'c')]);
    }
}
