//! Ranges of addresses, first and last byte.

/// What is left of ranges without the holes, sorted.
pub(super) fn without(mut ranges: Vec<(u64, u64)>, holes: &[(u64, u64)]) -> Vec<(u64, u64)> {
    for hole in holes {
        ranges = ranges.into_iter().flat_map(|range| around(range, *hole)).collect();
    }
    ranges.sort_unstable();
    ranges
}

fn around((first, last): (u64, u64), hole: (u64, u64)) -> impl Iterator<Item = (u64, u64)> {
    let apart = (hole.1 < first || last < hole.0).then_some((first, last));
    let before = (apart.is_none() && hole.0 > first).then(|| (first, hole.0 - 1));
    let after = (apart.is_none() && hole.1 < last).then(|| (hole.1 + 1, last));
    [apart, before, after].into_iter().flatten()
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn holes_leave_what_is_around_them() {
        let all = || vec![(0, u64::MAX)];
        assert_eq!(without(all(), &[(0, 9), (20, u64::MAX)]), [(10, 19)]);
        assert_eq!(without(all(), &[(5, 5), (3, 6)]), [(0, 2), (7, u64::MAX)]);
        assert_eq!(without(vec![(10, 20), (0, 5)], &[(6, 9), (30, 40)]), [(0, 5), (10, 20)]);
        assert_eq!(without(all(), &[(0, u64::MAX)]), []);
    }
}
