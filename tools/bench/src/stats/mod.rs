//! What is measured of a clone, and added up for a group.

mod buckets;
mod latency;
mod samples;
mod usage;

pub use buckets::{Depths, LatencyBuckets, MS_LABELS, SUB_MS_LABELS};
pub use latency::{Latency, PERCENTILES};
pub use samples::{SampledRates, Samples};
pub use usage::Usage;

use std::time::Duration;

use crate::engine::PathBytes;
use crate::values::PerDirection;

/// One direction.
#[derive(Debug, Clone, Default)]
pub struct DirectionStats {
    /// Bytes moved.
    pub bytes: u64,
    /// Transfers.
    pub transfers: u64,
    /// Transfers that moved less than asked for.
    pub short: u64,
    /// From the call to its return, ns; of asynchronous engines.
    pub submission: Latency,
    /// From there to the end, ns.
    pub completion: Latency,
    /// All of it, ns.
    pub total: Latency,
    /// Bandwidth and rate while it ran.
    pub samples: SampledRates,
    /// How long the clone went this way.
    pub runtime: Duration,
}

impl DirectionStats {
    fn add(&mut self, other: &DirectionStats) {
        self.bytes += other.bytes;
        self.transfers += other.transfers;
        self.short += other.short;
        self.submission.add(&other.submission);
        self.completion.add(&other.completion);
        self.total.add(&other.total);
        self.samples.add(&other.samples);
        self.runtime = self.runtime.max(other.runtime);
    }
}

/// One clone, or several that are reported together.
#[derive(Debug, Clone, Default)]
pub struct Stats {
    /// Each direction.
    pub directions: PerDirection<DirectionStats>,
    /// fsync(2) and fdatasync(2).
    pub sync: Latency,
    /// How many of them were fsync(2), which is what fio counts.
    pub full_syncs: u64,
    /// Transfers under way, at each start.
    pub depths: Depths,
    /// Completion latencies of both directions.
    pub buckets: LatencyBuckets,
    /// How long it ran.
    pub runtime: Duration,
    /// What it cost.
    pub usage: Usage,
    /// Which ways the bytes went, where the engine has several.
    pub paths: Option<PathBytes>,
}

impl Stats {
    /// Adds what ran at the same time.
    pub fn add(&mut self, other: &Stats) {
        self.directions.read.add(&other.directions.read);
        self.directions.write.add(&other.directions.write);
        self.sync.add(&other.sync);
        self.full_syncs += other.full_syncs;
        self.depths.add(&other.depths);
        self.buckets.add(&other.buckets);
        self.runtime += other.runtime;
        self.usage.add(&other.usage);
        if let Some(paths) = &other.paths {
            self.paths.get_or_insert_default().add(paths);
        }
    }

    /// Transfers of both directions.
    pub fn transfers(&self) -> u64 {
        self.directions.read.transfers + self.directions.write.transfers
    }
}
