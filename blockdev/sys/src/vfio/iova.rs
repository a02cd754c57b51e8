//! Which I/O addresses are free. Pure bookkeeping: nothing here asks the kernel.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// Kept free below: a device that uses an address nobody gave it mostly uses a small one.
const LOWEST: u64 = 64 << 10;

/// Where x86 devices send message-signalled interrupts, whatever is mapped.
const MSI_WINDOW: RangeInclusive<u64> = 0xFEE0_0000..=0xFEEF_FFFF;

/// Free and allowed ranges of an I/O address space, bytes. First fit.
#[derive(Debug)]
pub(super) struct IovaAllocator {
    /// Disjoint, in order.
    allowed: Vec<RangeInclusive<u64>>,
    /// First address to last address; neighbours are merged.
    free: BTreeMap<u64, u64>,
}

impl IovaAllocator {
    /// All of `ranges` is free, but for the lowest 64 KiB and the window of message-signalled interrupts.
    pub(super) fn new(ranges: &[RangeInclusive<u64>]) -> Self {
        let whole = std::slice::from_ref(&(LOWEST..=u64::MAX));
        let outside_msi = [0..=MSI_WINDOW.start() - 1, MSI_WINDOW.end() + 1..=u64::MAX];
        let allowed = intersection(&intersection(ranges, whole), &outside_msi);
        let free = allowed.iter().map(|range| (*range.start(), *range.end())).collect();
        IovaAllocator { allowed, free }
    }

    /// Only `ranges` are allowed from now on. What is in use elsewhere stays so, and is not used again.
    pub(super) fn restrict(&mut self, ranges: &[RangeInclusive<u64>]) {
        self.allowed = intersection(&self.allowed, ranges);
        let free: Vec<_> = self.free.iter().map(|(first, last)| *first..=*last).collect();
        let free = intersection(&free, ranges);
        self.free = free.into_iter().map(RangeInclusive::into_inner).collect();
    }

    /// Takes `length` bytes at a multiple of `align` (a power of two), none above `highest`: the lowest such.
    pub(super) fn allocate(&mut self, length: u64, align: u64, highest: u64) -> Option<u64> {
        let below = length.checked_sub(1)?;
        let (start, first, last) = self.free.iter().find_map(|(first, last)| {
            let start = first.checked_next_multiple_of(align)?;
            let end = start.checked_add(below)?;
            (end <= (*last).min(highest)).then_some((start, *first, *last))
        })?;
        self.take_out(first, last, start, start + below);
        Some(start)
    }

    /// Takes `length` bytes at `iova`; false if they are not all free and allowed.
    pub(super) fn reserve(&mut self, iova: u64, length: u64) -> bool {
        let Some(end) = length.checked_sub(1).and_then(|below| iova.checked_add(below)) else { return false };
        match self.free.range(..=iova).next_back() {
            Some((&first, &last)) if end <= last => {
                self.take_out(first, last, iova, end);
                true
            }
            _ => false,
        }
    }

    /// Gives back what [`IovaAllocator::allocate`] or [`IovaAllocator::reserve`] took.
    ///
    /// # Panics
    /// When any of it is free already: two owners of one address.
    pub(super) fn release(&mut self, iova: u64, length: u64) {
        let returned = iova..=iova + (length - 1);
        for part in intersection(&self.allowed, std::slice::from_ref(&returned)) {
            self.put_back(*part.start(), *part.end());
        }
    }

    fn take_out(&mut self, first: u64, last: u64, start: u64, end: u64) {
        self.free.remove(&first);
        if first < start {
            self.free.insert(first, start - 1);
        }
        if end < last {
            self.free.insert(end + 1, last);
        }
    }

    fn put_back(&mut self, mut first: u64, mut last: u64) {
        if let Some((&before, &end)) = self.free.range(..=last).next_back() {
            assert!(end < first, "I/O addresses {first:#x} to {last:#x} are freed twice");
            if end + 1 == first {
                self.free.remove(&before);
                first = before;
            }
        }
        if let Some(end) = last.checked_add(1).and_then(|next| self.free.remove(&next)) {
            last = end;
        }
        self.free.insert(first, last);
    }
}

/// What lies in both of two sets of ranges, in order; each set has no overlaps.
fn intersection(left: &[RangeInclusive<u64>], right: &[RangeInclusive<u64>]) -> Vec<RangeInclusive<u64>> {
    let pairs = left.iter().flat_map(|a| right.iter().map(move |b| (a, b)));
    let common = pairs.map(|(a, b)| *a.start().max(b.start())..=*a.end().min(b.end()));
    let mut common: Vec<_> = common.filter(|range| !range.is_empty()).collect();
    common.sort_by_key(|range| *range.start());
    common
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = 4096;
    /// What QEMU's emulated VT-d reports.
    const QEMU: [RangeInclusive<u64>; 2] = [0..=0xFEDF_FFFF, 0xFEF0_0000..=0x7F_FFFF_FFFF];

    #[test]
    fn the_lowest_fit_is_taken_aligned() {
        let mut iova = IovaAllocator::new(&QEMU);
        assert_eq!(iova.allocate(PAGE, PAGE, u64::MAX), Some(LOWEST));
        assert_eq!(iova.allocate(PAGE, 2 << 20, u64::MAX), Some(2 << 20));
        assert_eq!(iova.allocate(PAGE, PAGE, u64::MAX), Some(LOWEST + PAGE), "the gap before an aligned one is used");
        assert_eq!(iova.allocate(0, PAGE, u64::MAX), None);
    }

    #[test]
    fn nothing_lies_at_zero_in_the_msi_window_or_above_the_limit() {
        let everything = [0..=u64::MAX];
        let mut iova = IovaAllocator::new(&everything);
        assert!(!iova.reserve(0, PAGE));
        assert!(!iova.reserve(0xFEE0_0000 - PAGE, 2 * PAGE));
        assert!(!iova.reserve(0xFEEF_F000, PAGE));
        assert!(iova.reserve(0xFEF0_0000, PAGE));
        assert!(iova.reserve(0xFEE0_0000 - PAGE, PAGE));
        assert_eq!(iova.allocate(4 << 30, PAGE, u64::from(u32::MAX)), None);
        assert_eq!(iova.allocate(4 << 30, PAGE, u64::MAX), Some(0xFEF0_1000), "behind the window and what is taken");
        assert_eq!(iova.allocate(u64::MAX, PAGE, u64::MAX), None);
    }

    #[test]
    fn what_is_freed_merges_again() {
        let mut iova = IovaAllocator::new(&QEMU);
        let untouched = iova.free.clone();
        let taken: Vec<u64> = (0..64).filter_map(|_| iova.allocate(PAGE, PAGE, u64::MAX)).collect();
        assert_eq!(taken.len(), 64);
        // Every second one first: then each of the rest joins two neighbours.
        for start in taken.iter().step_by(2).chain(taken.iter().skip(1).step_by(2)) {
            iova.release(*start, PAGE);
        }
        assert_eq!(iova.free, untouched);
    }

    #[test]
    fn two_ranges_that_touch_are_not_confused_at_the_ends_of_the_space() {
        let mut iova = IovaAllocator::new(&[u64::MAX - 0xFFFF..=u64::MAX]);
        let start = iova.allocate(0x1_0000, PAGE, u64::MAX).expect("all of it");
        assert_eq!(iova.allocate(1, 1, u64::MAX), None);
        iova.release(start, 0x1_0000);
        assert!(iova.reserve(u64::MAX, 1));
        assert!(!iova.reserve(u64::MAX, 2));
    }

    #[test]
    fn a_restriction_holds_for_what_is_freed_later() {
        let mut iova = IovaAllocator::new(&QEMU);
        assert!(iova.reserve(1 << 20, 2 << 20));
        iova.restrict(&[2 << 20..=(4 << 20) - 1]);
        assert_eq!(iova.allocate(2 << 20, PAGE, u64::MAX), None);
        iova.release(1 << 20, 2 << 20);
        assert_eq!(iova.allocate(2 << 20, PAGE, u64::MAX), Some(2 << 20));
        assert_eq!(iova.allocate(PAGE, PAGE, u64::MAX), None);
    }

    #[test]
    fn random_use_never_gives_an_address_twice_and_ends_as_it_began() {
        const SIZES: [u64; 4] = [PAGE, 3 * PAGE, 2 << 20, 5 << 20];
        let mut iova = IovaAllocator::new(&QEMU);
        let untouched = iova.free.clone();
        let mut taken: BTreeMap<u64, u64> = BTreeMap::new();
        let mut seed = 0x9E37_79B9_7F4A_7C15_u64;
        for _ in 0..5000 {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            let length = SIZES[seed as usize % SIZES.len()];
            if seed >> 40 & 1 == 0 || taken.is_empty() {
                let align = if length >= 2 << 20 { 2 << 20 } else { PAGE };
                let start = iova.allocate(length, align, u64::MAX).expect("room");
                assert!(start.is_multiple_of(align) && start >= LOWEST);
                let below = taken.range(..start + length).next_back();
                assert!(below.is_none_or(|(other, size)| other + size <= start), "{start:#x} overlaps {below:x?}");
                taken.insert(start, length);
            } else {
                let at = *taken.keys().nth((seed >> 8) as usize % taken.len()).expect("some");
                let size = taken.remove(&at).expect("just found");
                iova.release(at, size);
            }
        }
        for (start, length) in taken {
            iova.release(start, length);
        }
        assert_eq!(iova.free, untouched);
    }

    #[test]
    #[should_panic(expected = "freed twice")]
    fn freeing_twice_is_found() {
        let mut iova = IovaAllocator::new(&QEMU);
        let start = iova.allocate(4 * PAGE, PAGE, u64::MAX).expect("room");
        iova.release(start, 4 * PAGE);
        iova.release(start + PAGE, PAGE);
    }
}
