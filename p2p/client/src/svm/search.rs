//! Where a range fits: the user-space counterpart of `vm_unmapped_area`, as a pure function.

use std::ops::Range;

use crate::Error;

/// Addresses are handed out in pages of this many bytes.
pub(super) const PAGE: u64 = 4096;

/// From which end of the limits the search starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The lowest address that fits.
    BottomUp,
    /// The highest address that fits.
    TopDown,
}

/// Where a range may be placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// First address allowed.
    pub low: u64,
    /// One past the last address allowed.
    pub high: u64,
    /// What the address is a multiple of: a power of two, at least 4096.
    pub alignment: u64,
    /// Which of the places that fit is taken.
    pub direction: Direction,
}

impl Default for Placement {
    /// Anywhere, as low as possible, on large pages of the device.
    fn default() -> Self {
        Placement { low: 0, high: u64::MAX, alignment: 2 << 20, direction: Direction::BottomUp }
    }
}

impl Placement {
    pub(super) fn check(&self, length: u64) -> Result<(), Error> {
        let aligned = self.alignment.is_power_of_two() && self.alignment >= PAGE;
        if length == 0 || !length.is_multiple_of(PAGE) || !aligned {
            let what = "a range has whole pages, and its alignment is a power of two and at least 4096";
            return Err(Error::Address { address: self.low, what });
        }
        Ok(())
    }
}

/// The address at which `length` bytes fit between what is taken. `taken` may be in any order and may overlap.
pub(super) fn find_free(taken: &[Range<u64>], length: u64, placement: &Placement) -> Option<u64> {
    let mut sorted: Vec<&Range<u64>> = taken.iter().filter(|range| range.start < range.end).collect();
    sorted.sort_by_key(|range| range.start);
    let mut gaps = Vec::with_capacity(sorted.len() + 1);
    let mut at = placement.low;
    for range in sorted {
        gaps.push(at..range.start.min(placement.high));
        at = at.max(range.end);
    }
    gaps.push(at..placement.high);
    let fit = |gap: Range<u64>| fit(gap, length, placement);
    match placement.direction {
        Direction::BottomUp => gaps.into_iter().find_map(fit),
        Direction::TopDown => gaps.into_iter().rev().find_map(fit),
    }
}

fn fit(gap: Range<u64>, length: u64, placement: &Placement) -> Option<u64> {
    let last = gap.end.checked_sub(length)?;
    let start = match placement.direction {
        Direction::BottomUp => gap.start.checked_next_multiple_of(placement.alignment)?,
        Direction::TopDown => last - last % placement.alignment,
    };
    (gap.start <= start && start <= last).then_some(start)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Tries every address, as nobody would.
    fn exhaustive(taken: &[Range<u64>], length: u64, placement: &Placement) -> Option<u64> {
        let free = |start: &u64| {
            let end = start + length;
            end <= placement.high && taken.iter().all(|range| range.is_empty() || range.end <= *start || end <= range.start)
        };
        let mut candidates = (placement.low..placement.high).filter(|start| start % placement.alignment == 0);
        match placement.direction {
            Direction::BottomUp => candidates.find(free),
            Direction::TopDown => candidates.rfind(free),
        }
    }

    proptest! {
        #[test]
        fn it_finds_what_trying_every_address_finds(
            ranges in prop::collection::vec((0_u64..200, 0_u64..40), 0..12),
            low in 0_u64..220,
            high in 0_u64..220,
            length in 1_u64..40,
            shift in 0_u32..6,
            top_down: bool,
        ) {
            let taken: Vec<_> = ranges.into_iter().map(|(start, length)| start..start + length).collect();
            let direction = if top_down { Direction::TopDown } else { Direction::BottomUp };
            let placement = Placement { low, high, alignment: 1 << shift, direction };
            prop_assert_eq!(find_free(&taken, length, &placement), exhaustive(&taken, length, &placement));
        }
    }

    #[test]
    fn the_ends_of_the_address_space_do_not_overflow() {
        let mut placement = Placement { alignment: PAGE, ..Placement::default() };
        assert_eq!(find_free(&[], u64::MAX, &placement), Some(0));
        placement.direction = Direction::TopDown;
        let top = u64::MAX - u64::MAX % PAGE;
        assert_eq!(find_free(&[], PAGE, &placement), Some(top - PAGE));
        assert_eq!(find_free(std::slice::from_ref(&(0..u64::MAX)), PAGE, &placement), None);
        placement.low = u64::MAX;
        placement.direction = Direction::BottomUp;
        assert_eq!(find_free(&[], PAGE, &placement), None);
    }
}
