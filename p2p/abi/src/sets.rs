//! Sets of reasons and of triggers, as the bits of an answer carry them.

use std::fmt;

use crate::{Reason, Trigger};

/// A set of reasons. Bit n stands for the n-th of [`Reason::ALL`], so the lowest bit is the first in pipeline order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct ReasonSet(u32);

/// A set of triggers. Bit n stands for the trigger with code n.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct TriggerSet(u32);

const _: () = {
    assert!(Reason::ALL.len() <= 32);
    let mut index = 0;
    while index < Trigger::ALL.len() {
        assert!((Trigger::ALL[index] as u32) < 32);
        index += 1;
    }
};

impl ReasonSet {
    /// No reason.
    pub const EMPTY: ReasonSet = ReasonSet(0);

    /// From the bits of an answer. Bits that stand for no reason of this version are dropped.
    pub fn from_bits(bits: u32) -> ReasonSet {
        ReasonSet(bits & (u32::MAX >> (32 - Reason::ALL.len())))
    }

    /// The bits of an answer.
    pub fn bits(self) -> u32 {
        self.0
    }

    /// With this reason too.
    #[must_use]
    pub fn with(self, reason: Reason) -> ReasonSet {
        // Codes ascend in `ALL`.
        let index = Reason::ALL.partition_point(|other| *other < reason);
        ReasonSet(self.0 | 1 << index)
    }

    /// With this reason if it holds.
    #[must_use]
    pub fn with_if(self, holds: bool, reason: Reason) -> ReasonSet {
        if holds { self.with(reason) } else { self }
    }

    /// The reasons of both.
    #[must_use]
    pub fn union(self, other: ReasonSet) -> ReasonSet {
        ReasonSet(self.0 | other.0)
    }

    /// Holds this reason.
    pub fn contains(self, reason: Reason) -> bool {
        self.with(reason) == self
    }

    /// Holds none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The first in pipeline order: the one that is given where only one can be.
    pub fn first(self) -> Option<Reason> {
        self.iter().next()
    }

    /// All of them, in pipeline order.
    pub fn iter(self) -> impl Iterator<Item = Reason> {
        Reason::ALL.iter().enumerate().filter(move |(index, _)| self.0 >> index & 1 == 1).map(|(_, reason)| *reason)
    }
}

impl FromIterator<Reason> for ReasonSet {
    fn from_iter<T: IntoIterator<Item = Reason>>(reasons: T) -> Self {
        reasons.into_iter().fold(ReasonSet::EMPTY, ReasonSet::with)
    }
}

impl fmt::Debug for ReasonSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

impl TriggerSet {
    /// No trigger.
    pub const EMPTY: TriggerSet = TriggerSet(0);

    /// From the bits of an answer. Bits that stand for no trigger of this version are dropped.
    pub fn from_bits(bits: u32) -> TriggerSet {
        Trigger::ALL.iter().copied().filter(|trigger| bits >> trigger.code() & 1 == 1).collect()
    }

    /// The bits of an answer.
    pub fn bits(self) -> u32 {
        self.0
    }

    /// With this trigger too.
    #[must_use]
    pub const fn with(self, trigger: Trigger) -> TriggerSet {
        TriggerSet(self.0 | 1 << trigger as u32)
    }

    /// The triggers of both.
    #[must_use]
    pub fn union(self, other: TriggerSet) -> TriggerSet {
        TriggerSet(self.0 | other.0)
    }

    /// Holds this trigger.
    pub fn contains(self, trigger: Trigger) -> bool {
        self.with(trigger) == self
    }

    /// Holds none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// All of them, in the order of their codes.
    pub fn iter(self) -> impl Iterator<Item = Trigger> {
        Trigger::ALL.iter().copied().filter(move |trigger| self.contains(*trigger))
    }
}

impl FromIterator<Trigger> for TriggerSet {
    fn from_iter<T: IntoIterator<Item = Trigger>>(triggers: T) -> Self {
        triggers.into_iter().fold(TriggerSet::EMPTY, TriggerSet::with)
    }
}

impl fmt::Debug for TriggerSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_keep_the_order_of_the_pipeline() {
        let set = ReasonSet::EMPTY.with(Reason::StaleContext).with(Reason::Busy).with_if(false, Reason::Hole);
        assert_eq!(set.iter().collect::<Vec<_>>(), [Reason::Busy, Reason::StaleContext]);
        assert_eq!(set.first(), Some(Reason::Busy));
        assert!(set.contains(Reason::Busy) && !set.contains(Reason::Hole));
        assert_eq!(ReasonSet::from_bits(set.bits()), set);
        assert_eq!(ReasonSet::from_bits(u32::MAX).iter().count(), Reason::ALL.len());
        let all: ReasonSet = Reason::ALL.iter().copied().collect();
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert!(all.contains(*reason) && all.bits() >> index & 1 == 1);
        }
    }

    #[test]
    fn triggers_are_bits_by_code() {
        let set: TriggerSet = [Trigger::Unmount, Trigger::Truncate].into_iter().collect();
        assert_eq!(set.bits(), 1 << Trigger::Truncate.code() | 1 << Trigger::Unmount.code());
        assert_eq!(set.iter().collect::<Vec<_>>(), [Trigger::Truncate, Trigger::Unmount]);
        assert_eq!(TriggerSet::from_bits(u32::MAX).iter().count(), Trigger::ALL.len());
    }
}
