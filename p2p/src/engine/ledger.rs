//! Who maps what, what was refused, and what revocations cost.

use std::collections::{HashMap, VecDeque};
use std::sync::Mutex;
use std::time::Duration;

use peerfs_abi::{Reason, Trigger};
use serde::Serialize;

use crate::sync::lock;
use crate::types::{ObjectId, Range};

/// Buckets of a histogram: powers of two of nanoseconds, four per octave.
const BUCKETS: usize = 64 * 4;

/// Latency of revocations, nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Default)]
pub struct Latency {
    /// Measurements.
    pub count: u64,
    /// Median, nanoseconds (upper edge of its bucket, at most 25 % above).
    pub p50_ns: u64,
    /// 99th percentile, nanoseconds.
    pub p99_ns: u64,
    /// Largest, nanoseconds, exact.
    pub max_ns: u64,
}

/// Revocations by one trigger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TriggerRecord {
    /// Name of the trigger.
    pub trigger: &'static str,
    /// Grants revoked.
    pub revoked: u64,
    /// Grants cut without an acknowledgement.
    pub enforced: u64,
    /// Time from the trigger to the cut.
    pub cut: Latency,
    /// Time write-back took after it.
    pub write_back: Latency,
}

/// A registered importer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ContextRecord {
    /// Context id.
    pub context: u64,
    /// Importer's name.
    pub importer: String,
    /// Process.
    pub pid: u32,
    /// User.
    pub uid: u32,
}

/// A live mapping.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MappingRecord {
    /// Mapping id.
    pub mapping: u64,
    /// Context id.
    pub context: u64,
    /// Importer's name.
    pub importer: String,
    /// Process.
    pub pid: u32,
    /// User.
    pub uid: u32,
    /// Object (inode number).
    pub object: u64,
    /// Start of the range, bytes.
    pub offset: u64,
    /// Length, bytes.
    pub length: u64,
    /// Map flags (bits of the ABI).
    pub flags: u32,
    /// Age, milliseconds.
    pub age_ms: u64,
    /// Live grants.
    pub grants: u64,
    /// Segments answered.
    pub segments: u64,
    /// Bytes moved directly, as reported.
    pub bytes_direct: u64,
    /// Bytes moved by fallback, as reported.
    pub bytes_fallback: u64,
}

/// A stretch that was not mapped directly.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RefusalRecord {
    /// How long ago, milliseconds.
    pub age_ms: u64,
    /// Object (inode number).
    pub object: u64,
    /// Start, bytes.
    pub offset: u64,
    /// Length, bytes.
    pub length: u64,
    /// Name of the reason.
    pub reason: &'static str,
}

/// Bytes moved for one object, as importers reported them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Default)]
pub struct ObjectCounters {
    /// Directly.
    pub bytes_direct: u64,
    /// By fallback.
    pub bytes_fallback: u64,
}

/// The state of the engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    /// Open sessions.
    pub sessions: u64,
    /// Registered importers.
    pub contexts: Vec<ContextRecord>,
    /// Live mappings.
    pub mappings: Vec<MappingRecord>,
    /// Live windows.
    pub windows: u64,
    /// Windows that were cut but could not be written back yet.
    pub windows_held: u64,
    /// Last refusals, newest first.
    pub refusals: Vec<RefusalRecord>,
    /// Revocations by trigger; triggers that never fired are left out.
    pub revocations: Vec<TriggerRecord>,
}

#[derive(Debug)]
struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    max_ns: u64,
}

impl Histogram {
    fn new() -> Self {
        Histogram { buckets: vec![0; BUCKETS], count: 0, max_ns: 0 }
    }

    fn add(&mut self, value: Duration) {
        let ns = u64::try_from(value.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[bucket_of(ns)] += 1;
        self.count += 1;
        self.max_ns = self.max_ns.max(ns);
    }

    fn percentile(&self, percent: u64) -> u64 {
        let rank = (self.count * percent).div_ceil(100);
        let mut seen = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= rank && seen > 0 {
                return upper_edge(bucket).min(self.max_ns);
            }
        }
        self.max_ns
    }

    fn summary(&self) -> Latency {
        Latency { count: self.count, p50_ns: self.percentile(50), p99_ns: self.percentile(99), max_ns: self.max_ns }
    }
}

/// Two bits below the leading one choose the quarter of the octave.
fn bucket_of(ns: u64) -> usize {
    if ns < 4 {
        return ns as usize;
    }
    let octave = ns.ilog2();
    let quarter = (ns >> (octave - 2)) & 3;
    (octave as usize) * 4 + quarter as usize
}

fn upper_edge(bucket: usize) -> u64 {
    if bucket < 8 {
        return bucket as u64;
    }
    let (octave, quarter) = (bucket / 4, bucket as u64 % 4);
    let width = 1u128 << (octave - 2);
    u64::try_from((4 + u128::from(quarter) + 1) * width - 1).unwrap_or(u64::MAX)
}

#[derive(Debug)]
struct TriggerStats {
    revoked: u64,
    enforced: u64,
    cut: Histogram,
    write_back: Histogram,
}

#[derive(Debug)]
struct Refusal {
    at: Duration,
    object: ObjectId,
    range: Range,
    reason: Reason,
}

/// Counters and the ring of refusals. Bounded.
#[derive(Debug)]
pub(super) struct Ledger {
    refusals: Mutex<VecDeque<Refusal>>,
    refusals_kept: usize,
    triggers: Mutex<HashMap<Trigger, TriggerStats>>,
    counters: Mutex<HashMap<ObjectId, ObjectCounters>>,
    counted_objects: usize,
}

impl Ledger {
    pub(super) fn new(refusals_kept: usize, counted_objects: usize) -> Self {
        Ledger {
            refusals: Mutex::default(),
            refusals_kept,
            triggers: Mutex::default(),
            counters: Mutex::default(),
            counted_objects,
        }
    }

    pub(super) fn refuse(&self, at: Duration, object: ObjectId, range: Range, reason: Reason) {
        let mut refusals = lock(&self.refusals);
        if refusals.len() >= self.refusals_kept {
            refusals.pop_front();
        }
        refusals.push_back(Refusal { at, object, range, reason });
    }

    pub(super) fn revoked(&self, trigger: Trigger, revoked: u64, enforced: u64, cut: Duration, write_back: Duration) {
        let mut triggers = lock(&self.triggers);
        let stats = triggers.entry(trigger).or_insert_with(|| TriggerStats {
            revoked: 0,
            enforced: 0,
            cut: Histogram::new(),
            write_back: Histogram::new(),
        });
        stats.revoked += revoked;
        stats.enforced += enforced;
        stats.cut.add(cut);
        stats.write_back.add(write_back);
    }

    /// Beyond the bound, bytes of further objects are counted in their mappings only.
    pub(super) fn moved(&self, object: ObjectId, direct: u64, fallback: u64) {
        let mut counters = lock(&self.counters);
        if counters.len() >= self.counted_objects && !counters.contains_key(&object) {
            return;
        }
        let entry = counters.entry(object).or_default();
        entry.bytes_direct = entry.bytes_direct.saturating_add(direct);
        entry.bytes_fallback = entry.bytes_fallback.saturating_add(fallback);
    }

    pub(super) fn counters(&self, object: ObjectId) -> ObjectCounters {
        lock(&self.counters).get(&object).copied().unwrap_or_default()
    }

    /// What a client gave back itself is no revocation.
    pub(super) fn totals(&self) -> (u64, u64) {
        let triggers = lock(&self.triggers);
        let revocations = triggers.iter().filter(|(trigger, _)| **trigger != Trigger::Unmap);
        revocations.fold((0, 0), |total, (_, stats)| (total.0 + stats.revoked, total.1 + stats.enforced))
    }

    pub(super) fn refusal_records(&self, now: Duration) -> Vec<RefusalRecord> {
        let record = |refusal: &Refusal| RefusalRecord {
            age_ms: now.saturating_sub(refusal.at).as_millis() as u64,
            object: refusal.object.0,
            offset: refusal.range.start,
            length: refusal.range.length(),
            reason: refusal.reason.name(),
        };
        lock(&self.refusals).iter().rev().map(record).collect()
    }

    pub(super) fn trigger_records(&self) -> Vec<TriggerRecord> {
        let triggers = lock(&self.triggers);
        let record = |trigger: &Trigger| {
            triggers.get(trigger).map(|stats| TriggerRecord {
                trigger: trigger.name(),
                revoked: stats.revoked,
                enforced: stats.enforced,
                cut: stats.cut.summary(),
                write_back: stats.write_back.summary(),
            })
        };
        Trigger::ALL.iter().filter_map(record).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_monotonic_and_tight() {
        let mut last = 0;
        for ns in (0..100_000u64).chain((17..64).map(|s| 1u64 << s)).chain([u64::MAX]) {
            let bucket = bucket_of(ns);
            assert!(bucket >= last && bucket < BUCKETS, "{ns}");
            assert!(upper_edge(bucket) >= ns, "{ns}");
            assert!(upper_edge(bucket) as f64 <= ns as f64 * 1.25 + 1.0, "{ns}");
            last = bucket;
        }
    }

    #[test]
    fn percentiles_of_a_known_distribution() {
        let mut histogram = Histogram::new();
        (1..=100).for_each(|us| histogram.add(Duration::from_micros(us)));
        let summary = histogram.summary();
        assert_eq!((summary.count, summary.max_ns), (100, 100_000));
        assert!((50_000..=62_500).contains(&summary.p50_ns), "{summary:?}");
        assert!((99_000..=100_000).contains(&summary.p99_ns), "{summary:?}");
    }
}
