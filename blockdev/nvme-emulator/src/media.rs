//! What the namespace holds: blocks, and a cache that a power cut may lose.

use std::collections::HashMap;

use crate::random::Random;

/// Logical blocks; those never written are zeros.
#[derive(Debug, Default)]
pub struct Media {
    durable: HashMap<u64, Box<[u8]>>,
    /// Written since the last flush.
    cached: HashMap<u64, Option<Box<[u8]>>>,
}

impl Media {
    /// Copies a block out.
    pub fn read(&self, block: u64, out: &mut [u8]) {
        let content = match self.cached.get(&block) {
            Some(cached) => cached.as_ref(),
            None => self.durable.get(&block),
        };
        match content {
            Some(bytes) if bytes.len() == out.len() => out.copy_from_slice(bytes),
            _ => out.fill(0),
        }
    }

    /// Writes a block, or forgets it (`None`: it reads as zeros).
    pub(crate) fn write(&mut self, block: u64, data: Option<&[u8]>) {
        self.cached.insert(block, data.map(Box::from));
    }

    /// Makes everything durable.
    pub(crate) fn flush(&mut self) {
        for (block, content) in self.cached.drain() {
            settle(&mut self.durable, block, content);
        }
    }

    /// Each block of the cache is lost or not, in no particular order.
    pub(crate) fn cut_power(&mut self, random: &mut Random) {
        let mut cached: Vec<_> = self.cached.drain().collect();
        // The order of a hash map is no function of the seed.
        cached.sort_by_key(|(block, _)| *block);
        for (block, content) in cached {
            if random.one_in(2) {
                settle(&mut self.durable, block, content);
            }
        }
    }
}

fn settle(durable: &mut HashMap<u64, Box<[u8]>>, block: u64, content: Option<Box<[u8]>>) {
    match content {
        Some(bytes) => durable.insert(block, bytes),
        None => durable.remove(&block),
    };
}
