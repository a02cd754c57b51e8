//! Latencies: extremes, mean, deviation and percentiles.

use hdrhistogram::Histogram;

/// The percentiles that fio shows.
pub const PERCENTILES: [f64; 17] =
    [1.0, 5.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.95, 99.99];

/// Significant digits of percentiles.
const DIGITS: u8 = 3;

/// Measured times, ns.
#[derive(Debug, Clone, Default)]
pub struct Latency {
    count: u64,
    min: u64,
    max: u64,
    mean: f64,
    /// Sum of the squares of the distances from the mean.
    squares: f64,
    histogram: Option<Histogram<u64>>,
}

impl Latency {
    /// Takes a time in.
    pub fn record(&mut self, ns: u64) {
        self.min = if self.count == 0 { ns } else { self.min.min(ns) };
        self.max = self.max.max(ns);
        self.count += 1;
        // Welford: no large sums, so nothing is lost when they are subtracted.
        let distance = ns as f64 - self.mean;
        self.mean += distance / self.count as f64;
        self.squares += distance * (ns as f64 - self.mean);
        // It grows as needed, so every time has a place.
        let _ = self.histogram.get_or_insert_with(new_histogram).record(ns);
    }

    /// Adds other times.
    pub fn add(&mut self, other: &Latency) {
        if other.count == 0 {
            return;
        }
        if self.count == 0 {
            *self = other.clone();
            return;
        }
        let (left, right) = (self.count as f64, other.count as f64);
        let distance = other.mean - self.mean;
        self.mean += distance * right / (left + right);
        self.squares += other.squares + distance * distance * left * right / (left + right);
        self.count += other.count;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
        if let Some(histogram) = &other.histogram {
            // Both grow, so nothing is out of range.
            let _ = self.histogram.get_or_insert_with(new_histogram).add(histogram);
        }
    }

    /// How many.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The shortest, ns; 0 without any.
    pub fn min(&self) -> u64 {
        self.min
    }

    /// The longest, ns.
    pub fn max(&self) -> u64 {
        self.max
    }

    /// The mean, ns.
    pub fn mean(&self) -> f64 {
        self.mean
    }

    /// The standard deviation of a sample, ns.
    pub fn deviation(&self) -> f64 {
        match self.count {
            0 | 1 => 0.0,
            count => (self.squares / (count - 1) as f64).sqrt(),
        }
    }

    /// The time, ns, that so many percent do not exceed.
    pub fn percentile(&self, percent: f64) -> u64 {
        let histogram = self.histogram.as_ref();
        histogram.map_or(0, |histogram| histogram.value_at_quantile(percent / 100.0)).clamp(self.min, self.max)
    }
}

fn new_histogram() -> Histogram<u64> {
    Histogram::new(DIGITS).expect("3 digits are possible")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(times: impl IntoIterator<Item = u64>) -> Latency {
        let mut latency = Latency::default();
        times.into_iter().for_each(|ns| latency.record(ns));
        latency
    }

    #[test]
    fn figures_are_those_of_the_definition() {
        let latency = of(1..=1000);
        assert_eq!((latency.count(), latency.min(), latency.max()), (1000, 1, 1000));
        assert!((latency.mean() - 500.5).abs() < 1e-9);
        assert!((latency.deviation() - 288.8194360957494).abs() < 1e-6);
        assert_eq!(latency.percentile(50.0), 500);
        assert_eq!(latency.percentile(99.0), 990);
        let slow = of((1..=1000).map(|ms| ms * 1_000_000));
        assert!(slow.percentile(50.0).abs_diff(500_000_000) <= 500_000, "{}", slow.percentile(50.0));
        assert_eq!(slow.percentile(99.99), 1_000_000_000);
        assert_eq!(of([]).percentile(50.0), 0);
        assert_eq!(of([7]).deviation(), 0.0);
    }

    #[test]
    fn parts_add_up_to_the_whole() {
        let mut parts = of((1..=1000).filter(|ns| ns % 3 == 0));
        parts.add(&of((1..=1000).filter(|ns| ns % 3 != 0)));
        parts.add(&of([]));
        let whole = of(1..=1000);
        assert_eq!((parts.count(), parts.min(), parts.max()), (whole.count(), whole.min(), whole.max()));
        assert!((parts.mean() - whole.mean()).abs() < 1e-9 && (parts.deviation() - whole.deviation()).abs() < 1e-6);
        assert_eq!(PERCENTILES.map(|percent| parts.percentile(percent)), PERCENTILES.map(|percent| whole.percentile(percent)));
    }
}
