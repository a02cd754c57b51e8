//! Sizes of blocks: fixed, a range, or a split by percent.

use super::numbers::size;

/// Longest block, bytes.
const LONGEST: u64 = 1 << 30;

/// A size and how often it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Weighted {
    /// Bytes.
    pub bytes: u64,
    /// Percent.
    pub percent: u8,
}

/// Sizes of the blocks of one direction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BlockSizes {
    /// One size, bytes.
    Fixed(u64),
    /// Any multiple of the first up to the second, bytes.
    Range(u64, u64),
    /// Sizes with percentages that add up to 100.
    Split(Vec<Weighted>),
}

impl BlockSizes {
    /// The smallest, bytes.
    pub fn smallest(&self) -> u64 {
        match self {
            BlockSizes::Fixed(bytes) | BlockSizes::Range(bytes, _) => *bytes,
            BlockSizes::Split(split) => split.iter().map(|part| part.bytes).min().unwrap_or(1),
        }
    }

    /// The largest, bytes.
    pub fn largest(&self) -> u64 {
        match self {
            BlockSizes::Fixed(bytes) | BlockSizes::Range(_, bytes) => *bytes,
            BlockSizes::Split(split) => split.iter().map(|part| part.bytes).max().unwrap_or(1),
        }
    }
}

/// One size of blocks.
pub fn block_size(text: &str) -> Result<BlockSizes, String> {
    bytes(text).map(BlockSizes::Fixed)
}

/// `SMALLEST-LARGEST`.
pub fn block_range(text: &str) -> Result<BlockSizes, String> {
    let (smallest, largest) = text.split_once('-').ok_or_else(|| format!("{text:?}: expected a range, for example 1k-4k"))?;
    match (bytes(smallest)?, bytes(largest)?) {
        (smallest, largest) if smallest <= largest => Ok(BlockSizes::Range(smallest, largest)),
        _ => Err(format!("{text:?}: expected the smaller size first")),
    }
}

/// `SIZE/PERCENT:SIZE/PERCENT:...`; sizes without a percentage share what the others leave.
pub fn block_split(text: &str) -> Result<BlockSizes, String> {
    let mut split = Vec::new();
    let mut open = Vec::new();
    let mut left = 100_u8;
    for (index, part) in text.split(':').enumerate() {
        let (size, percent) = part.split_once('/').unwrap_or((part, ""));
        let percent = match percent.trim() {
            "" => None,
            number => Some(number.parse().map_err(|_| format!("{part:?}: expected SIZE/PERCENT"))?),
        };
        open.extend(percent.is_none().then_some(index));
        left = left.checked_sub(percent.unwrap_or(0)).ok_or_else(|| format!("{text:?}: more than 100 percent"))?;
        split.push(Weighted { bytes: bytes(size)?, percent: percent.unwrap_or(0) });
    }
    if open.is_empty() && left > 0 || split.len() > 100 {
        return Err(format!("{text:?}: expected percentages that add up to 100"));
    }
    for (turn, index) in open.iter().enumerate() {
        let share = left / (open.len() - turn) as u8;
        split[*index].percent = share;
        left -= share;
    }
    Ok(BlockSizes::Split(split))
}

fn bytes(text: &str) -> Result<u64, String> {
    match size(text)? {
        bytes @ 1..=LONGEST => Ok(bytes),
        _ => Err(format!("{text:?}: expected a block of 1 byte to 1g")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn percents(text: &str) -> Result<Vec<(u64, u8)>, String> {
        block_split(text).map(|sizes| match sizes {
            BlockSizes::Split(split) => split.iter().map(|part| (part.bytes, part.percent)).collect(),
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn open_shares_are_filled() {
        assert_eq!(percents("4k/10:64k/50:32k/40"), Ok(vec![(4096, 10), (65536, 50), (32768, 40)]));
        assert_eq!(percents("4k/50:1k/:32k/"), Ok(vec![(4096, 50), (1024, 25), (32768, 25)]));
        assert_eq!(percents("4k:1k:2k"), Ok(vec![(4096, 33), (1024, 33), (2048, 34)]));
        for text in ["4k/60:8k/60", "4k/50", "4k/x", "", "0/100", "4k/300"] {
            assert!(percents(text).is_err(), "{text}");
        }
    }

    #[test]
    fn ranges_are_in_order() {
        assert_eq!(block_range("1k-4k"), Ok(BlockSizes::Range(1024, 4096)));
        assert!(block_range("4k-1k").is_err() && block_range("4k").is_err() && block_size("0").is_err());
        assert_eq!(block_size("2g"), Err("\"2g\": expected a block of 1 byte to 1g".to_owned()));
    }
}
