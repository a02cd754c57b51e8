//! Bandwidth and rate over time.

use std::time::Duration;

/// Length of a sample, as in fio.
const WINDOW: Duration = Duration::from_millis(500);

/// Figures of a few numbers.
#[derive(Debug, Clone, Copy, Default)]
pub struct Samples {
    count: u64,
    min: f64,
    max: f64,
    sum: f64,
    squares: f64,
}

impl Samples {
    /// Takes a number in.
    pub fn record(&mut self, value: f64) {
        self.min = if self.count == 0 { value } else { self.min.min(value) };
        self.max = self.max.max(value);
        self.count += 1;
        self.sum += value;
        self.squares += value * value;
    }

    /// Adds the numbers of what ran at the same time: means and extremes are those of the sums, roughly, as in fio.
    pub fn add(&mut self, other: &Samples) {
        if self.count == 0 || other.count == 0 {
            if self.count == 0 {
                *self = *other;
            }
            return;
        }
        let mean = self.mean() + other.mean();
        let variance = self.deviation().powi(2) + other.deviation().powi(2);
        self.min += other.min;
        self.max += other.max;
        self.count = self.count.max(other.count);
        self.sum = mean * self.count as f64;
        self.squares = variance * (self.count.max(2) - 1) as f64 + mean * mean * self.count as f64;
    }

    /// How many.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The smallest.
    pub fn min(&self) -> f64 {
        self.min
    }

    /// The largest.
    pub fn max(&self) -> f64 {
        self.max
    }

    /// The mean; 0 without any.
    pub fn mean(&self) -> f64 {
        self.sum / self.count.max(1) as f64
    }

    /// The standard deviation of a sample.
    pub fn deviation(&self) -> f64 {
        let count = self.count as f64;
        match self.count {
            0 | 1 => 0.0,
            _ => ((self.squares - self.sum * self.sum / count).max(0.0) / (count - 1.0)).sqrt(),
        }
    }
}

/// Samples of one direction, one every half second.
#[derive(Debug, Clone, Default)]
pub struct SampledRates {
    /// KiB per second.
    pub bandwidth: Samples,
    /// Operations per second.
    pub rate: Samples,
    since: Duration,
    bytes: u64,
    transfers: u64,
}

impl SampledRates {
    /// A transfer ended `now`, counted over the time that its direction ran.
    pub fn record(&mut self, now: Duration, bytes: u64) {
        self.bytes += bytes;
        self.transfers += 1;
        let window = now.saturating_sub(self.since);
        if window < WINDOW {
            return;
        }
        self.bandwidth.record(self.bytes as f64 / 1024.0 / window.as_secs_f64());
        self.rate.record(self.transfers as f64 / window.as_secs_f64());
        (self.since, self.bytes, self.transfers) = (now, 0, 0);
    }

    /// Adds what ran at the same time.
    pub fn add(&mut self, other: &SampledRates) {
        self.bandwidth.add(&other.bandwidth);
        self.rate.add(&other.rate);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_half_a_second() {
        let mut rates = SampledRates::default();
        rates.record(Duration::from_millis(400), 1024);
        assert_eq!(rates.bandwidth.count(), 0);
        rates.record(Duration::from_millis(500), 1024);
        assert_eq!((rates.bandwidth.count(), rates.bandwidth.mean(), rates.rate.mean()), (1, 4.0, 4.0));
    }

    #[test]
    fn what_ran_at_the_same_time_is_added() {
        let of = |values: &[f64]| {
            let mut samples = Samples::default();
            values.iter().for_each(|value| samples.record(*value));
            samples
        };
        let mut both = of(&[1.0, 3.0]);
        both.add(&of(&[10.0, 30.0]));
        both.add(&of(&[]));
        assert_eq!((both.count(), both.min(), both.max(), both.mean()), (2, 11.0, 33.0, 22.0));
        let expected = (of(&[1.0, 3.0]).deviation().powi(2) + of(&[10.0, 30.0]).deviation().powi(2)).sqrt();
        assert!((both.deviation() - expected).abs() < 1e-9);
    }
}
