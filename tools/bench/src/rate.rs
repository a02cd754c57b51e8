//! How fast a clone may go.

use std::time::Duration;

use crate::settings::Settings;
use crate::values::{Direction, PerDirection};

/// Limits, and what has been used of them.
#[derive(Debug)]
pub struct Limiter {
    /// Bytes per second; 0: none.
    bytes: PerDirection<u64>,
    /// Operations per second; 0: none.
    operations: PerDirection<u64>,
    used_bytes: PerDirection<u64>,
    used_operations: PerDirection<u64>,
}

impl Limiter {
    /// The limits of a job, if it has any.
    pub fn new(settings: &Settings) -> Option<Limiter> {
        let (bytes, operations) = (settings.rate, settings.rate_iops);
        let limited = [bytes.read, bytes.write, operations.read, operations.write].iter().any(|limit| *limit > 0);
        limited.then(|| Limiter {
            bytes,
            operations,
            used_bytes: PerDirection::default(),
            used_operations: PerDirection::default(),
        })
    }

    /// When, from the start on, the next transfer of a direction is due.
    pub fn due(&self, direction: Direction) -> Duration {
        let bytes = time(*self.used_bytes.get(direction), *self.bytes.get(direction));
        bytes.max(time(*self.used_operations.get(direction), *self.operations.get(direction)))
    }

    /// A transfer began.
    pub fn count(&mut self, direction: Direction, bytes: u64) {
        *self.used_bytes.get_mut(direction) += bytes;
        *self.used_operations.get_mut(direction) += 1;
    }
}

fn time(used: u64, per_second: u64) -> Duration {
    match per_second {
        0 => Duration::ZERO,
        limit => Duration::from_secs_f64(used as f64 / limit as f64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stricter_limit_counts_and_directions_are_apart() {
        let settings = Settings {
            rate: PerDirection { read: 4096, write: 0 },
            rate_iops: PerDirection { read: 4, write: 10 },
            ..Settings::default()
        };
        let mut limiter = Limiter::new(&settings).expect("limited");
        assert_eq!(limiter.due(Direction::Read), Duration::ZERO);
        limiter.count(Direction::Read, 4096);
        assert_eq!(limiter.due(Direction::Read), Duration::from_secs(1));
        assert_eq!(limiter.due(Direction::Write), Duration::ZERO);
        limiter.count(Direction::Write, 1 << 20);
        assert_eq!(limiter.due(Direction::Write), Duration::from_millis(100));
        assert!(Limiter::new(&Settings::default()).is_none());
    }
}
