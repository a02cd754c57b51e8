//! Which block comes next.

mod distribution;
mod random_map;
mod sizes;

use distribution::Skew;
use random_map::RandomMap;
use sizes::Sizes;

use crate::Job;
use crate::random::Random;
use crate::values::{Direction, PerDirection};

/// Part of a file, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// Where it begins.
    pub start: u64,
    /// How long it is.
    pub length: u64,
    /// How much is moved in one loop.
    pub total: u64,
}

/// One transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Which way.
    pub direction: Direction,
    /// Offset in the file, bytes.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

impl Step {
    /// Have the two any byte of the file in common?
    pub fn overlaps(&self, other: &Step) -> bool {
        self.offset < other.offset + other.length && other.offset < self.offset + self.length
    }
}

/// How offsets follow each other.
enum Order {
    /// Each direction goes on where it was, bytes from the start of the region.
    Sequential(PerDirection<u64>),
    /// At random, each block once.
    Once(RandomMap),
    /// At random, again and again.
    Repeating(Skew),
}

/// The transfers of one clone.
pub struct Pattern {
    region: Region,
    order: Order,
    sizes: Sizes,
    offsets: Random,
    directions: Random,
    access: crate::settings::Access,
    mix_read: u8,
    /// Offsets are multiples of it, bytes.
    unit: u64,
    issued: u64,
}

impl Pattern {
    /// The pattern of a clone; the same seed gives the same one.
    pub fn new(job: &Job, region: Region, seed: u64) -> Pattern {
        let unit = job.smallest_block();
        let units = region.length / unit;
        let settings = &job.settings;
        let order = match (settings.access.random, job.has_random_map()) {
            (false, _) => Order::Sequential(PerDirection::default()),
            (true, true) => Order::Once(RandomMap::new(units)),
            (true, false) => Order::Repeating(Skew::new(settings.distribution, units)),
        };
        Pattern {
            region,
            order,
            sizes: Sizes::new(settings.blocks.clone(), seed),
            offsets: Random::new(seed, 1),
            directions: Random::new(seed, 2),
            access: settings.access,
            mix_read: settings.mix_read,
            unit,
            issued: 0,
        }
    }

    /// Begins another loop. Random numbers go on, so that it has another order.
    pub fn restart(&mut self) {
        self.issued = 0;
        match &mut self.order {
            Order::Sequential(positions) => *positions = PerDirection::default(),
            Order::Once(map) => map.clear(),
            Order::Repeating(_) => {}
        }
    }

    /// The next transfer; `None` at the end of the loop.
    pub fn next(&mut self) -> Option<Step> {
        if self.issued >= self.region.total || self.region.length < self.unit {
            return None;
        }
        let direction = self.direction();
        let wanted = self.sizes.next(direction);
        let (at, length) = self.place(direction, wanted)?;
        self.issued += length;
        Some(Step { direction, offset: self.region.start + at, length })
    }

    fn direction(&mut self) -> Direction {
        let reads = match self.access.is_mixed() {
            true => self.directions.below(100) < u64::from(self.mix_read),
            false => self.access.reads,
        };
        if reads { Direction::Read } else { Direction::Write }
    }

    /// Where in the region, and how long, bytes.
    fn place(&mut self, direction: Direction, wanted: u64) -> Option<(u64, u64)> {
        // Only who moves more than there is goes over it again.
        let again = self.region.total > self.region.length;
        let (unit, end) = (self.unit, self.region.length);
        let fitting = |at: u64, wanted: u64| match wanted <= end - at {
            true => wanted,
            false => (end - at) / unit * unit,
        };
        match &mut self.order {
            Order::Sequential(positions) => {
                let position = positions.get_mut(direction);
                if fitting(*position, wanted) == 0 {
                    if !again {
                        return None;
                    }
                    *position = 0;
                }
                let at = *position;
                let length = fitting(at, wanted);
                *position += length;
                Some((at, length))
            }
            Order::Once(map) => {
                if map.is_full() {
                    if !again {
                        return None;
                    }
                    map.clear();
                }
                let guess = self.offsets.below(map.length());
                let (first, units) = map.take(guess, wanted.div_ceil(unit));
                let at = first * unit;
                Some((at, wanted.min(units * unit)))
            }
            Order::Repeating(skew) => {
                let at = skew.next(&mut self.offsets) * unit;
                Some((at, fitting(at, wanted)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;
    use crate::job_file::sections;
    use crate::plan::Plan;

    fn steps(options: &str, region: Region) -> Vec<Step> {
        let sections = sections(Path::new("a.fio"), &format!("[a]\n{}", options.replace(' ', "\n"))).expect("lexes");
        let plan = Plan::new(&sections, false).expect("good");
        let mut pattern = Pattern::new(&plan.jobs[0], region, 5);
        std::iter::from_fn(|| pattern.next()).take(100_000).collect()
    }

    fn region(length: u64, total: u64) -> Region {
        Region { start: 1 << 20, length, total }
    }

    fn bytes(steps: &[Step]) -> u64 {
        steps.iter().map(|step| step.length).sum()
    }

    #[test]
    fn sequential_blocks_follow_each_other_and_an_odd_end_is_left() {
        let steps = steps("rw=read bs=4k", region(10 << 10, 10 << 10));
        assert_eq!(steps.iter().map(|step| step.offset - (1 << 20)).collect::<Vec<_>>(), [0, 4096]);
    }

    #[test]
    fn more_than_there_is_goes_over_it_again() {
        for rw in ["read", "randread"] {
            let steps = steps(&format!("rw={rw} bs=4k"), region(16 << 10, 40 << 10));
            assert_eq!(steps.len(), 10, "{rw}");
            let first: BTreeSet<u64> = steps[..4].iter().map(|step| step.offset).collect();
            let second: BTreeSet<u64> = steps[4..8].iter().map(|step| step.offset).collect();
            assert_eq!((first.len(), &first), (4, &second), "{rw}");
        }
    }

    #[test]
    fn random_blocks_come_once_whatever_their_size() {
        for sizes in ["bs=4k", "bsrange=1k-16k", "bssplit=1k/40:4k/30:16k/30"] {
            let steps = steps(&format!("rw=randwrite {sizes}"), region(1 << 20, 1 << 20));
            assert_eq!(bytes(&steps), 1 << 20, "{sizes}");
            let mut sorted = steps.clone();
            sorted.sort_by_key(|step| step.offset);
            assert!(sorted.windows(2).all(|pair| !pair[0].overlaps(&pair[1])), "{sizes}");
            assert_ne!(sorted, steps, "{sizes}");
        }
    }

    #[test]
    fn mixed_jobs_keep_their_share() {
        for rw in ["rw", "randrw"] {
            let steps = steps(&format!("rw={rw} rwmixread=70 bs=1k"), region(8 << 20, 8 << 20));
            let reads = steps.iter().filter(|step| step.direction == Direction::Read).count();
            assert_eq!(steps.len(), 8192);
            assert!((0.67..0.73).contains(&(reads as f64 / 8192.0)), "{reads}");
        }
    }

    #[test]
    fn repeating_orders_repeat_and_stay_inside() {
        for order in ["norandommap", "random_distribution=zipf:1.2", "random_distribution=pareto:0.1"] {
            let steps = steps(&format!("rw=randread bs=4k {order}"), region(1 << 20, 1 << 20));
            let blocks: BTreeSet<u64> = steps.iter().map(|step| step.offset).collect();
            assert_eq!(steps.len(), 256, "{order}");
            assert!(blocks.len() < 200, "{order}: {}", blocks.len());
            assert!(steps.iter().all(|step| step.offset >= 1 << 20 && step.offset + step.length <= 2 << 20));
        }
    }
}
