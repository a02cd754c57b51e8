//! What a writer does to its file, version by version. Writer and checker derive it from the same seed.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::Random;

/// Devices tear writes at this granularity, bytes.
pub const SECTOR: usize = 512;
/// What memory that holds blocks (persistent memory, a PMR) writes whole, bytes: a copy may be cut off in a sector.
pub const MAPPED_GRAIN: usize = 8;
/// Writes are multiples of this, bytes.
pub const BLOCK: usize = 4096;
/// Longest file, blocks.
const BLOCKS: u64 = 512;

/// The sequence of versions of one file.
pub struct Plan {
    seed: u64,
    random: Random,
    version: u64,
    whole_first: bool,
}

/// One version: the block ranges that it writes.
pub struct Step {
    /// Its number, from 1.
    pub version: u64,
    /// Ranges of blocks.
    pub runs: Vec<Range<u64>>,
}

impl Plan {
    /// The plan of a seed. `whole_first`: version 1 writes all of the file, so that its length never changes.
    pub fn new(seed: u64, whole_first: bool) -> Plan {
        Plan { seed, random: Random::new(seed), version: 0, whole_first }
    }

    /// Bytes of one block of a version.
    pub fn block(&self, version: u64, block: u64) -> Vec<u8> {
        block_content(self.seed, version, block)
    }
}

impl Iterator for Plan {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        self.version += 1;
        let mut runs = Vec::new();
        for _ in 0..=self.random.below(4) {
            let start = self.random.below(BLOCKS);
            runs.push(start..(start + 1 + self.random.below(16)).min(BLOCKS));
        }
        if self.version == 1 && self.whole_first {
            runs = Vec::from([Range { start: 0, end: BLOCKS }]);
        }
        Some(Step { version: self.version, runs })
    }
}

fn block_content(seed: u64, version: u64, block: u64) -> Vec<u8> {
    let mut content = vec![0; BLOCK];
    Random::new(seed ^ version.wrapping_mul(0x0100_0000_01B3) ^ (block << 48)).fill(&mut content);
    for (number, sector) in content.chunks_exact_mut(SECTOR).enumerate() {
        // Readable in a dump of a failure.
        let header = [version, block, number as u64];
        for (field, value) in sector.chunks_exact_mut(8).zip(header) {
            field.copy_from_slice(&value.to_le_bytes());
        }
    }
    content
}

/// What may be in a file after versions up to `synced` were synced and one more was on its way.
pub struct Expectation {
    seed: u64,
    /// Block to the last synced version that wrote it.
    synced: BTreeMap<u64, u64>,
    in_flight: Step,
}

impl Expectation {
    /// After `synced` versions.
    pub fn after(seed: u64, whole_first: bool, synced: u64) -> Expectation {
        let mut plan = Plan::new(seed, whole_first);
        let mut blocks = BTreeMap::new();
        loop {
            let step = plan.next().expect("plans do not end");
            if step.version > synced {
                return Expectation { seed, synced: blocks, in_flight: step };
            }
            for run in step.runs {
                blocks.extend(run.map(|block| (block, step.version)));
            }
        }
    }

    /// Shortest length the file may have, bytes.
    pub fn least_length(&self) -> u64 {
        self.synced.keys().next_back().map_or(0, |last| (last + 1) * BLOCK as u64)
    }

    /// Says what is wrong with the content, if something is. `grain`: what the medium writes whole, bytes, at most a sector.
    pub fn judge(&self, content: &[u8], grain: usize) -> Result<(), String> {
        if (content.len() as u64) < self.least_length() {
            return Err(format!("it has {} bytes, {} were synced", content.len(), self.least_length()));
        }
        for (block, bytes) in content.chunks(BLOCK).enumerate() {
            let block = block as u64;
            let old = self.synced.get(&block).copied();
            let new = self.in_flight.runs.iter().any(|run| run.contains(&block)).then_some(self.in_flight.version);
            let old_bytes = old.map_or_else(|| vec![0; BLOCK], |version| block_content(self.seed, version, block));
            let new_bytes = new.map(|version| block_content(self.seed, version, block));
            for (number, piece) in bytes.chunks(grain).enumerate() {
                let place = number * grain..number * grain + piece.len();
                let is_new = new_bytes.as_ref().is_some_and(|bytes| bytes[place.clone()] == *piece);
                if old_bytes[place] != *piece && !is_new {
                    return Err(format!(
                        "byte {} of block {block} begins {:02x?} and is neither version {old:?} nor {new:?}",
                        number * grain,
                        &piece[..piece.len().min(24)]
                    ));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replay(seed: u64, versions: u64) -> Vec<u8> {
        let mut plan = Plan::new(seed, false);
        let mut content = Vec::new();
        for _ in 0..versions {
            let step = plan.next().expect("plans do not end");
            for block in step.runs.into_iter().flatten() {
                let start = block as usize * BLOCK;
                content.resize(content.len().max(start + BLOCK), 0);
                content[start..start + BLOCK].copy_from_slice(&plan.block(step.version, block));
            }
        }
        content
    }

    #[test]
    fn the_checker_accepts_what_was_written_and_nothing_else() {
        let content = replay(7, 9);
        let expectation = Expectation::after(7, false, 9);
        assert_eq!(expectation.judge(&content, SECTOR), Ok(()));
        assert_eq!(Expectation::after(7, false, 8).judge(&content, SECTOR), Ok(()), "the ninth may have arrived");
        assert!(expectation.judge(&replay(7, 8), SECTOR).is_err(), "the ninth was synced");
        assert!(expectation.judge(&content[..content.len() - BLOCK], SECTOR).is_err());
        let mut torn = content.clone();
        torn[3 * SECTOR] ^= 1;
        assert!(expectation.judge(&torn, SECTOR).is_err() && expectation.judge(&torn, MAPPED_GRAIN).is_err());
        // The ninth version, half of which has arrived, in a sector that it changes.
        let (old, new) = (replay(7, 8), replay(7, 9));
        let changed = (0..old.len()).step_by(SECTOR).find(|at| old[*at..at + SECTOR] != new[*at..at + SECTOR]);
        let changed = changed.expect("the ninth version changes something old");
        let mut torn = old.clone();
        torn[changed..changed + SECTOR / 2].copy_from_slice(&new[changed..changed + SECTOR / 2]);
        let unsynced = Expectation::after(7, false, 8);
        assert!(unsynced.judge(&torn, SECTOR).is_err());
        assert_eq!(unsynced.judge(&torn, MAPPED_GRAIN), Ok(()));
    }
}
