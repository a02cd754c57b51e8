//! What a run did, for people and for the final assertions.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::AddAssign;

/// Counters of a run.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// Steps by kind.
    pub steps: BTreeMap<&'static str, u64>,
    /// Segments answered, by reason; `direct` for the direct ones.
    pub segments: BTreeMap<&'static str, u64>,
    /// Bytes importers moved directly.
    pub bytes_direct: u64,
    /// Bytes importers moved by fallback.
    pub bytes_fallback: u64,
    /// Accesses to grants that had been cut.
    pub cut_accesses: u64,
    /// Grants revoked, by trigger.
    pub revoked: BTreeMap<String, u64>,
    /// Clean remounts and crashes.
    pub restarts: u64,
}

impl Tally {
    /// Kind of a step that found nothing to act on.
    pub const IDLE: &'static str = "nothing to do";

    /// Steps of all kinds that did something.
    pub fn total_steps(&self) -> u64 {
        self.steps.iter().filter(|(kind, _)| **kind != Self::IDLE).map(|(_, count)| count).sum()
    }

    /// Grants revoked by any trigger.
    pub fn total_revoked(&self) -> u64 {
        self.revoked.values().sum()
    }

    /// Part of the importers' bytes that went directly, 0 to 1.
    pub fn direct_share(&self) -> f64 {
        let total = self.bytes_direct + self.bytes_fallback;
        if total == 0 { 0.0 } else { self.bytes_direct as f64 / total as f64 }
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        for (kind, count) in other.steps {
            *self.steps.entry(kind).or_default() += count;
        }
        for (reason, count) in other.segments {
            *self.segments.entry(reason).or_default() += count;
        }
        self.bytes_direct += other.bytes_direct;
        self.bytes_fallback += other.bytes_fallback;
        self.cut_accesses += other.cut_accesses;
        for (trigger, count) in other.revoked {
            *self.revoked.entry(trigger).or_default() += count;
        }
        self.restarts += other.restarts;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} steps, {} restarts; importers moved {} bytes directly and {} by fallback: {:.1} % direct",
            self.total_steps(),
            self.restarts,
            self.bytes_direct,
            self.bytes_fallback,
            self.direct_share() * 100.0
        )?;
        writeln!(f, "grants revoked: {:?}; {} accesses met a cut grant", self.revoked, self.cut_accesses)?;
        writeln!(f, "segments: {:?}", self.segments)?;
        write!(f, "steps: {:?}", self.steps)
    }
}
