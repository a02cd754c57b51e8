//! The grants of one mapping: mostly a single one, which then takes no memory of its own.

use std::collections::HashSet;

use crate::types::GrantId;

#[derive(Default)]
pub(super) enum GrantSet {
    #[default]
    None,
    One(GrantId),
    Many(Box<Several>),
}

/// Boxed, so that the set of a mapping with one grant stays small.
pub(super) struct Several(HashSet<GrantId>);

impl GrantSet {
    /// True: it is the first one.
    pub(super) fn insert(&mut self, grant: GrantId) -> bool {
        match self {
            GrantSet::None => {
                *self = GrantSet::One(grant);
                return true;
            }
            GrantSet::One(first) => *self = GrantSet::Many(Box::new(Several(HashSet::from([*first, grant])))),
            GrantSet::Many(grants) => {
                grants.0.insert(grant);
            }
        }
        false
    }

    /// True: it was the last one.
    pub(super) fn remove(&mut self, grant: GrantId) -> bool {
        let last = match self {
            GrantSet::None => false,
            GrantSet::One(only) => *only == grant,
            GrantSet::Many(grants) => grants.0.remove(&grant) && grants.0.is_empty(),
        };
        if last {
            *self = GrantSet::None;
        }
        last
    }

    pub(super) fn len(&self) -> usize {
        match self {
            GrantSet::None => 0,
            GrantSet::One(_) => 1,
            GrantSet::Many(grants) => grants.0.len(),
        }
    }

    pub(super) fn to_vec(&self) -> Vec<GrantId> {
        match self {
            GrantSet::None => Vec::new(),
            GrantSet::One(grant) => vec![*grant],
            GrantSet::Many(grants) => grants.0.iter().copied().collect(),
        }
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn it_tells_the_first_and_the_last() {
        let mut set = GrantSet::default();
        assert!(!set.remove(GrantId(1)) && set.to_vec().is_empty());
        assert!(set.insert(GrantId(1)));
        assert!(!set.remove(GrantId(2)));
        assert!(!set.insert(GrantId(2)) && !set.insert(GrantId(3)) && !set.insert(GrantId(3)));
        assert_eq!(set.len(), 3);
        assert!(!set.remove(GrantId(1)) && !set.remove(GrantId(2)) && !set.remove(GrantId(2)));
        assert!(set.remove(GrantId(3)));
        assert_eq!(set.len(), 0);
        assert!(set.insert(GrantId(4)) && set.remove(GrantId(4)));
    }
}
