//! The name that was probably meant.

/// The name of `known` with the fewest changes to `word`, if that is at most a third of it.
pub fn nearest<'n>(word: &str, known: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    let most = word.chars().count().div_ceil(3);
    let best = known.map(|name| (distance(word, name), name)).min();
    best.filter(|(changes, _)| *changes <= most).map(|(_, name)| name)
}

/// Letters to insert, delete or replace (Levenshtein).
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (index, letter) in left.chars().enumerate() {
        let mut corner = row[0];
        row[0] = index + 1;
        for (column, other) in right.iter().enumerate() {
            let replaced = corner + usize::from(letter != *other);
            corner = row[column + 1];
            row[column + 1] = replaced.min(row[column] + 1).min(corner + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_names_are_found_and_far_ones_are_not() {
        let known = || ["iodepth", "ioengine", "bs"].into_iter();
        assert_eq!(nearest("iodeph", known()), Some("iodepth"));
        assert_eq!(nearest("io_engine", known()), Some("ioengine"));
        assert_eq!(nearest("zonemode", known()), None);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
