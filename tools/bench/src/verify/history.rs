//! What was written where, so that it can be verified.

use std::collections::BTreeMap;

/// A block as last written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Offset in the file, bytes.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// Which of the clone's writes it was.
    pub number: u64,
}

/// The blocks of one clone that are whole: one that was overwritten in part is forgotten.
#[derive(Debug, Default)]
pub struct History(BTreeMap<u64, Written>);

impl History {
    /// Takes in a block that was written.
    pub fn add(&mut self, block: Written) {
        let end = block.offset + block.length;
        // Blocks do not overlap, so of those that begin before it only the last can reach into it.
        let before = self.0.range(..block.offset).next_back().map(|(_, other)| *other);
        if let Some(other) = before.filter(|other| other.offset + other.length > block.offset) {
            self.0.remove(&other.offset);
        }
        let inside: Vec<u64> = self.0.range(block.offset..end).map(|(offset, _)| *offset).collect();
        for offset in inside {
            self.0.remove(&offset);
        }
        self.0.insert(block.offset, block);
    }

    /// The blocks, by offset, which are forgotten.
    pub fn take(&mut self) -> impl Iterator<Item = Written> + use<> {
        std::mem::take(&mut self.0).into_values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_overwritten_in_part_is_forgotten() {
        let mut history = History::default();
        let block = |offset, length, number| Written { offset, length, number };
        history.add(block(0, 8, 1));
        history.add(block(8, 8, 2));
        history.add(block(16, 4, 3));
        history.add(block(20, 4, 4));
        history.add(block(12, 8, 5));
        let left: Vec<Written> = history.take().collect();
        assert_eq!(left, [block(0, 8, 1), block(12, 8, 5), block(20, 4, 4)]);
        assert_eq!(history.take().count(), 0);
    }
}
