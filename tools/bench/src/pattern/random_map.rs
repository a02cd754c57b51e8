//! Which units of a region have been used: a tree of bitmaps, so that a free one is found in a few steps
//! however full it is.

const WORD: u64 = u64::BITS as u64;

/// Units that are taken one run at a time.
pub struct RandomMap {
    /// `levels[0]` has a bit for each unit; each further level one for each word below, set when that is full.
    levels: Vec<Vec<u64>>,
    length: u64,
    free: u64,
}

impl RandomMap {
    /// `length` units, all free.
    pub fn new(length: u64) -> RandomMap {
        let mut levels = Vec::new();
        let mut bits = length.max(1);
        loop {
            let words = bits.div_ceil(WORD);
            levels.push(vec![0; words as usize]);
            if words == 1 {
                break;
            }
            bits = words;
        }
        let mut map = RandomMap { levels, length, free: length };
        map.clear();
        map
    }

    /// Frees everything.
    pub fn clear(&mut self) {
        let mut bits = self.length;
        for level in &mut self.levels {
            level.fill(0);
            // What lies behind the last unit is never free.
            let used = bits % WORD;
            if let Some(last) = level.last_mut().filter(|_| used > 0) {
                *last = u64::MAX << used;
            }
            bits = bits.div_ceil(WORD);
        }
        self.free = self.length;
    }

    /// Units.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Is nothing free?
    pub fn is_full(&self) -> bool {
        self.free == 0
    }

    /// Takes the first free unit from `guess` on, going round at the end, and up to `most` with those that are free behind
    /// it. Answers the first and how many. The map is not full.
    pub fn take(&mut self, guess: u64, most: u64) -> (u64, u64) {
        let first = self.next_free(0, guess).or_else(|| self.next_free(0, 0)).expect("callers look whether it is full");
        let mut count = 0;
        while count < most && first + count < self.length && !self.is_taken(first + count) {
            self.set(first + count);
            count += 1;
        }
        self.free -= count;
        (first, count)
    }

    fn is_taken(&self, unit: u64) -> bool {
        self.levels[0][(unit / WORD) as usize] & (1 << (unit % WORD)) != 0
    }

    fn set(&mut self, mut bit: u64) {
        for level in &mut self.levels {
            let word = &mut level[(bit / WORD) as usize];
            *word |= 1 << (bit % WORD);
            if *word != u64::MAX {
                return;
            }
            bit /= WORD;
        }
    }

    /// The first clear bit of a level from `from` on.
    fn next_free(&self, level: usize, from: u64) -> Option<u64> {
        let words = self.levels.get(level)?;
        let index = from / WORD;
        let word = *words.get(index as usize)?;
        let clear = !word & (u64::MAX << (from % WORD));
        if clear != 0 {
            return Some(index * WORD + u64::from(clear.trailing_zeros()));
        }
        let above = self.next_free(level + 1, index + 1)?;
        Some(above * WORD + u64::from((!words[above as usize]).trailing_zeros()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    #[test]
    fn every_unit_is_taken_once() {
        for length in [1, 63, 64, 65, 4096, 5000, 300_000] {
            let mut map = RandomMap::new(length);
            let mut random = Random::new(length, 0);
            let mut taken = vec![false; length as usize];
            while !map.is_full() {
                let (first, count) = map.take(random.below(length), 1 + random.below(5));
                assert!(count >= 1);
                for unit in first..first + count {
                    assert!(!std::mem::replace(&mut taken[unit as usize], true), "{unit} of {length}");
                }
            }
            assert!(taken.iter().all(|unit| *unit), "{length}");
            map.clear();
            assert_eq!(map.take(length - 1, 9), (length - 1, 1));
        }
    }
}
