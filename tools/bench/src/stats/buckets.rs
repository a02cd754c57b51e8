//! Counters by size: of latencies, and of transfers under way.

/// Upper ends of the buckets below a microsecond (ns) and below a millisecond (us).
pub const SUB_MS_LABELS: [u64; 10] = [2, 4, 10, 20, 50, 100, 250, 500, 750, 1000];

/// Upper ends of the buckets from a millisecond on (ms); one more for what is longer.
pub const MS_LABELS: [u64; 11] = [2, 4, 10, 20, 50, 100, 250, 500, 750, 1000, 2000];

/// Completion latencies.
#[derive(Debug, Clone, Copy, Default)]
pub struct LatencyBuckets {
    /// Below a microsecond.
    pub ns: [u64; SUB_MS_LABELS.len()],
    /// Below a millisecond.
    pub us: [u64; SUB_MS_LABELS.len()],
    /// The others.
    pub ms: [u64; MS_LABELS.len() + 1],
}

impl LatencyBuckets {
    /// Takes a latency in.
    pub fn record(&mut self, ns: u64) {
        let place = |labels: &[u64], value: u64| labels.partition_point(|label| *label <= value);
        match ns {
            0..1000 => self.ns[place(&SUB_MS_LABELS, ns)] += 1,
            1000..1_000_000 => self.us[place(&SUB_MS_LABELS, ns / 1000)] += 1,
            _ => self.ms[place(&MS_LABELS, ns / 1_000_000)] += 1,
        }
    }

    /// Adds other latencies.
    pub fn add(&mut self, other: &LatencyBuckets) {
        add(&mut self.ns, &other.ns);
        add(&mut self.us, &other.us);
        add(&mut self.ms, &other.ms);
    }
}

/// How many transfers were under way.
#[derive(Debug, Clone, Copy, Default)]
pub struct Depths([u64; 7]);

impl Depths {
    /// The buckets as fio labels them; each counts what is below the next.
    pub const LABELS: [&str; 7] = ["1", "2", "4", "8", "16", "32", ">=64"];

    /// A transfer began, and so many are under way with it.
    pub fn record(&mut self, running: usize) {
        self.0[(running.max(1).ilog2() as usize).min(Self::LABELS.len() - 1)] += 1;
    }

    /// Counts by bucket.
    pub fn counts(&self) -> [u64; 7] {
        self.0
    }

    /// Adds other transfers.
    pub fn add(&mut self, other: &Depths) {
        add(&mut self.0, &other.0);
    }
}

fn add<const N: usize>(to: &mut [u64; N], from: &[u64; N]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_ends_before_its_label() {
        let mut buckets = LatencyBuckets::default();
        for ns in [0, 1, 2, 999, 1000, 999_999, 1_000_000, 1_999_999_999, 2_000_000_000, u64::MAX] {
            buckets.record(ns);
        }
        assert_eq!(buckets.ns, [2, 1, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(buckets.us, [1, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(buckets.ms, [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2]);
    }

    #[test]
    fn depths_are_powers_of_two() {
        let mut depths = Depths::default();
        [1, 2, 3, 4, 63, 64, 4096].into_iter().for_each(|running| depths.record(running));
        assert_eq!(depths.counts(), [1, 2, 1, 0, 0, 1, 2]);
    }
}
