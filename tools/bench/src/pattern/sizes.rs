//! How long the next block is.

use crate::random::Random;
use crate::values::{BlockSizes, Direction, PerDirection};

/// Sizes of blocks by direction.
pub struct Sizes {
    sizes: PerDirection<BlockSizes>,
    random: Random,
}

impl Sizes {
    /// The same seed gives the same sizes.
    pub fn new(sizes: PerDirection<BlockSizes>, seed: u64) -> Sizes {
        Sizes { sizes, random: Random::new(seed, 3) }
    }

    /// Bytes.
    pub fn next(&mut self, direction: Direction) -> u64 {
        match self.sizes.get(direction) {
            BlockSizes::Fixed(bytes) => *bytes,
            BlockSizes::Range(smallest, largest) => smallest * (1 + self.random.below(largest / smallest)),
            BlockSizes::Split(split) => {
                let mut point = self.random.below(100);
                for part in split {
                    match point.checked_sub(part.percent.into()) {
                        Some(left) => point = left,
                        None => return part.bytes,
                    }
                }
                self.sizes.get(direction).smallest()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::values::{block_range, block_split};

    #[test]
    fn splits_and_ranges_have_their_shares() {
        let sizes = PerDirection { read: block_split("4k/10:64k/90").expect("good"), write: block_range("1k-4k").expect("good") };
        let mut sizes = Sizes::new(sizes, 1);
        let reads: Vec<u64> = (0..10_000).map(|_| sizes.next(Direction::Read)).collect();
        let small = reads.iter().filter(|bytes| **bytes == 4096).count();
        assert!((900..1100).contains(&small), "{small}");
        for bytes in [1024, 2048, 3072, 4096] {
            let count = (0..10_000).filter(|_| sizes.next(Direction::Write) == bytes).count();
            assert!((2300..2700).contains(&count), "{bytes}: {count}");
        }
    }
}
