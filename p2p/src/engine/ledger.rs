//! Who maps what, what was refused, and what revocations cost.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use peerfs_abi::{REASON_SLOTS, Reason, Trigger};
use serde::Serialize;

use super::ring::Ring;
use crate::moved::{Moved, MovedCounters, ReasonCounters};
use crate::sync::DashMap;
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

/// The distribution behind a [`Latency`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Distribution {
    /// (upper edge in nanoseconds, measurements up to it), for each edge at which the count grows; ascending.
    pub cumulative: Vec<(u64, u64)>,
    /// Sum of all measurements, nanoseconds.
    pub sum_ns: u64,
}

/// The distributions of the revocations by one trigger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TriggerDistribution {
    /// Name of the trigger.
    pub trigger: &'static str,
    /// Time from the trigger to the cut.
    pub cut: Distribution,
    /// Time write-back took after it.
    pub write_back: Distribution,
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
    /// The same by path and reason.
    pub moved: Moved,
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

/// A revocation: what one trigger ended together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RevocationRecord {
    /// How many there were before it, since the mount.
    pub number: u64,
    /// How long ago its trigger came, milliseconds.
    pub age_ms: u64,
    /// Name of the trigger.
    pub trigger: &'static str,
    /// Grants revoked.
    pub revoked: u64,
    /// Grants cut without an acknowledgement.
    pub enforced: u64,
    /// Time from the trigger to the cut, nanoseconds.
    pub cut_ns: u64,
    /// Time write-back took after it, nanoseconds.
    pub write_back_ns: u64,
}

/// The state of the engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    /// Open sessions.
    pub sessions: u64,
    /// Registered importers.
    pub contexts: Vec<ContextRecord>,
    /// Live mappings, as many as are listed at most.
    pub mappings: Vec<MappingRecord>,
    /// Live mappings that are not listed.
    pub mappings_left_out: u64,
    /// Live windows.
    pub windows: u64,
    /// Windows that were cut but could not be written back yet.
    pub windows_held: u64,
    /// Last refusals, newest first.
    pub refusals: Vec<RefusalRecord>,
    /// Last revocations, newest first.
    pub last_revocations: Vec<RevocationRecord>,
    /// Revocations by trigger; triggers that never fired are left out.
    pub revocations: Vec<TriggerRecord>,
}

/// The state of the engine in numbers; costs the same however much is mapped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Open sessions.
    pub sessions: u64,
    /// Registered importers.
    pub contexts: u64,
    /// Mappings that were made and not ended.
    pub mappings: u64,
    /// Live windows.
    pub windows: u64,
    /// Windows that were cut but could not be written back yet.
    pub windows_held: u64,
    /// Revocations by trigger; triggers that never fired are left out.
    pub revocations: Vec<TriggerRecord>,
    /// Stretches that were not mapped directly, for each reason ([`Reason::slot`]).
    pub refused: [u64; REASON_SLOTS],
    /// Bytes that importers reported to have moved.
    pub moved: Moved,
}

#[derive(Debug)]
struct Histogram {
    buckets: Box<[AtomicU64]>,
    max_ns: AtomicU64,
    sum_ns: AtomicU64,
}

impl Histogram {
    fn new() -> Self {
        Histogram {
            buckets: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect(),
            max_ns: AtomicU64::new(0),
            sum_ns: AtomicU64::new(0),
        }
    }

    fn add(&self, value: Duration) {
        let ns = u64::try_from(value.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[bucket_of(ns)].fetch_add(1, Ordering::Relaxed);
        self.max_ns.fetch_max(ns, Ordering::Relaxed);
        self.sum_ns.fetch_add(ns, Ordering::Relaxed);
    }

    fn summary(&self) -> Latency {
        let buckets: Vec<u64> = self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect();
        let max_ns = self.max_ns.load(Ordering::Relaxed);
        let percentile = |percent| percentile(&buckets, percent).min(max_ns);
        Latency { count: buckets.iter().sum(), p50_ns: percentile(50), p99_ns: percentile(99), max_ns }
    }
}

impl Histogram {
    fn distribution(&self) -> Distribution {
        let mut count = 0;
        let mut cumulative = Vec::new();
        for (bucket, more) in self.buckets.iter().enumerate() {
            let more = more.load(Ordering::Relaxed);
            if more > 0 {
                count += more;
                cumulative.push((upper_edge(bucket), count));
            }
        }
        Distribution { cumulative, sum_ns: self.sum_ns.load(Ordering::Relaxed) }
    }
}

fn percentile(buckets: &[u64], percent: u64) -> u64 {
    let rank = (buckets.iter().sum::<u64>() * percent).div_ceil(100).max(1);
    let mut seen = 0;
    let reached = buckets.iter().position(|count| {
        seen += count;
        seen >= rank
    });
    reached.map_or(0, upper_edge)
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
    revoked: AtomicU64,
    enforced: AtomicU64,
    cut: Histogram,
    write_back: Histogram,
}

impl TriggerStats {
    fn new() -> Self {
        let zero = || AtomicU64::new(0);
        TriggerStats { revoked: zero(), enforced: zero(), cut: Histogram::new(), write_back: Histogram::new() }
    }

    fn totals(&self) -> (u64, u64) {
        (self.revoked.load(Ordering::Relaxed), self.enforced.load(Ordering::Relaxed))
    }
}

#[derive(Debug, Clone, Copy)]
struct Refusal {
    at: Duration,
    object: ObjectId,
    range: Range,
    reason: Reason,
}

/// What one trigger ended together.
#[derive(Debug, Clone, Copy)]
pub(super) struct Revocation {
    /// When the trigger came.
    pub(super) at: Duration,
    pub(super) trigger: Trigger,
    /// Grants.
    pub(super) revoked: u64,
    /// Those of them that did not acknowledge.
    pub(super) enforced: u64,
    /// From the trigger to the cut.
    pub(super) cut: Duration,
    /// Write-back after it.
    pub(super) write_back: Duration,
}

/// Revocations that the ledger remembers one by one.
const REVOCATIONS_KEPT: usize = 128;

/// Counters and the rings of refusals and revocations. Bounded, and without a lock that all maps take.
#[derive(Debug)]
pub(super) struct Ledger {
    refusals: Ring<Refusal>,
    revocations: Ring<Revocation>,
    /// In the order of [`Trigger::ALL`].
    triggers: Vec<TriggerStats>,
    refused: ReasonCounters,
    moved: MovedCounters,
    counters: DashMap<ObjectId, Moved>,
    counted_objects: usize,
    /// Mappings that hold at least one grant, by object. Below zero for a moment where the end of one is told before
    /// its beginning: neither is told under a lock.
    live: DashMap<ObjectId, i64>,
    live_total: AtomicI64,
}

impl Ledger {
    pub(super) fn new(refusals_kept: usize, counted_objects: usize) -> Self {
        Ledger {
            refusals: Ring::new(refusals_kept),
            revocations: Ring::new(REVOCATIONS_KEPT),
            triggers: Trigger::ALL.iter().map(|_| TriggerStats::new()).collect(),
            refused: ReasonCounters::default(),
            moved: MovedCounters::default(),
            counters: DashMap::new(),
            counted_objects,
            live: DashMap::new(),
            live_total: AtomicI64::new(0),
        }
    }

    pub(super) fn refuse(&self, at: Duration, object: ObjectId, range: Range, reason: Reason) {
        self.refused.add(reason.slot(), 1);
        self.refusals.push(Refusal { at, object, range, reason });
    }

    pub(super) fn revoked(&self, revocation: Revocation) {
        let Some(stats) = self.stats(revocation.trigger) else { return };
        stats.revoked.fetch_add(revocation.revoked, Ordering::Relaxed);
        stats.enforced.fetch_add(revocation.enforced, Ordering::Relaxed);
        stats.cut.add(revocation.cut);
        stats.write_back.add(revocation.write_back);
        // What a client gives back is no revocation, and there is more of that.
        if revocation.trigger != Trigger::Unmap {
            self.revocations.push(revocation);
        }
    }

    /// Beyond the bound, an object that nobody maps is forgotten; where there is none, bytes of further objects are
    /// counted in their mappings and the total only.
    pub(super) fn moved(&self, object: ObjectId, moved: &Moved) {
        if moved.is_nothing() {
            return;
        }
        self.moved.add(moved);
        if !self.counters.contains_key(&object) && self.counters.len() >= self.counted_objects {
            let unmapped = self.counters.iter().map(|entry| *entry.key()).find(|other| !self.live.contains_key(other));
            match unmapped {
                Some(other) => self.counters.remove(&other),
                None => return,
            };
        }
        self.counters.entry(object).or_default().add(moved);
    }

    pub(super) fn moved_of(&self, object: ObjectId) -> Moved {
        self.counters.get(&object).map(|moved| moved.clone()).unwrap_or_default()
    }

    pub(super) fn moved_total(&self) -> Moved {
        self.moved.load()
    }

    /// Stretches that were not mapped directly, for each reason.
    pub(super) fn refused(&self) -> [u64; REASON_SLOTS] {
        self.refused.load()
    }

    /// A mapping of the object got its first grant.
    pub(super) fn mapping_lives(&self, object: ObjectId) {
        self.count_live(object, 1);
    }

    /// A mapping of the object lost its last grant.
    pub(super) fn mapping_ends(&self, object: ObjectId) {
        self.count_live(object, -1);
    }

    fn count_live(&self, object: ObjectId, change: i64) {
        self.live_total.fetch_add(change, Ordering::Relaxed);
        let left = {
            let mut count = self.live.entry(object).or_default();
            *count += change;
            *count
        };
        if left == 0 {
            self.live.remove_if(&object, |_, count| *count == 0);
        }
    }

    /// Mappings, of one object or all, that hold at least one grant.
    pub(super) fn live_mappings(&self, object: Option<ObjectId>) -> u64 {
        let count = match object {
            None => self.live_total.load(Ordering::Relaxed),
            Some(object) => self.live.get(&object).map_or(0, |count| *count),
        };
        u64::try_from(count).unwrap_or(0)
    }

    /// What a client gave back itself is no revocation.
    pub(super) fn totals(&self) -> (u64, u64) {
        let revocations = Trigger::ALL.iter().zip(&self.triggers).filter(|(trigger, _)| **trigger != Trigger::Unmap);
        revocations.map(|(_, stats)| stats.totals()).fold((0, 0), |total, more| (total.0 + more.0, total.1 + more.1))
    }

    pub(super) fn refusal_records(&self, now: Duration) -> Vec<RefusalRecord> {
        let record = |refusal: Refusal| RefusalRecord {
            age_ms: now.saturating_sub(refusal.at).as_millis() as u64,
            object: refusal.object.0,
            offset: refusal.range.start,
            length: refusal.range.length(),
            reason: refusal.reason.name(),
        };
        self.refusals.newest_first().into_iter().map(|(_, refusal)| record(refusal)).collect()
    }

    pub(super) fn revocation_records(&self, now: Duration) -> Vec<RevocationRecord> {
        let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let record = |(number, revocation): (u64, Revocation)| RevocationRecord {
            number,
            age_ms: now.saturating_sub(revocation.at).as_millis() as u64,
            trigger: revocation.trigger.name(),
            revoked: revocation.revoked,
            enforced: revocation.enforced,
            cut_ns: nanoseconds(revocation.cut),
            write_back_ns: nanoseconds(revocation.write_back),
        };
        self.revocations.newest_first().into_iter().map(record).collect()
    }

    pub(super) fn trigger_records(&self) -> Vec<TriggerRecord> {
        let fired = Trigger::ALL.iter().zip(&self.triggers).map(|(trigger, stats)| {
            let (revoked, enforced) = stats.totals();
            let (cut, write_back) = (stats.cut.summary(), stats.write_back.summary());
            TriggerRecord { trigger: trigger.name(), revoked, enforced, cut, write_back }
        });
        fired.filter(|record| record.cut.count > 0).collect()
    }

    pub(super) fn trigger_distributions(&self) -> Vec<TriggerDistribution> {
        let all = Trigger::ALL.iter().zip(&self.triggers).map(|(trigger, stats)| TriggerDistribution {
            trigger: trigger.name(),
            cut: stats.cut.distribution(),
            write_back: stats.write_back.distribution(),
        });
        all.filter(|of_trigger| !of_trigger.cut.cumulative.is_empty()).collect()
    }

    fn stats(&self, trigger: Trigger) -> Option<&TriggerStats> {
        self.triggers.get(Trigger::ALL.iter().position(|known| *known == trigger)?)
    }
}

#[cfg(all(test, not(shuttle)))]
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
        let histogram = Histogram::new();
        (1..=100).for_each(|us| histogram.add(Duration::from_micros(us)));
        let summary = histogram.summary();
        assert_eq!((summary.count, summary.max_ns), (100, 100_000));
        assert!((50_000..=62_500).contains(&summary.p50_ns), "{summary:?}");
        assert!((99_000..=100_000).contains(&summary.p99_ns), "{summary:?}");
        let distribution = histogram.distribution();
        assert_eq!(distribution.sum_ns, (1..=100).map(|us| us * 1000).sum::<u64>());
        assert!(distribution.cumulative.is_sorted() && distribution.cumulative.last().is_some_and(|(_, count)| *count == 100));
        let below = |ns| distribution.cumulative.iter().rfind(|(edge, _)| *edge <= ns).map(|(_, count)| *count);
        assert!((40..=50).contains(&below(50_000).expect("a bucket")), "{distribution:?}");
    }
}
