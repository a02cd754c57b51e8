//! When a clone's measurement begins and ends.

use std::time::{Duration, Instant};

use crate::settings::Settings;

/// The times of one clone.
#[derive(Debug)]
pub struct Clock {
    /// When what is measured began.
    start: Instant,
    runtime: Option<Duration>,
    /// Until then nothing is measured.
    ramp: Option<Duration>,
}

impl Clock {
    /// Begins now.
    pub fn new(settings: &Settings) -> Clock {
        let ramp = Some(settings.ramp_time).filter(|time| !time.is_zero());
        Clock { start: Instant::now(), runtime: settings.runtime, ramp }
    }

    /// Time since the measurement began.
    pub fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Has the ramp just ended? The measurement begins now then, once.
    pub fn ramp_ends(&mut self) -> bool {
        let ends = self.ramp.is_some_and(|ramp| self.now() >= ramp);
        if ends {
            self.ramp = None;
            self.start = Instant::now();
        }
        ends
    }

    /// Is the runtime over?
    pub fn is_over(&self) -> bool {
        self.ramp.is_none() && self.left().is_some_and(|left| left.is_zero())
    }

    /// What is left of ramp and runtime; `None`: any time.
    pub fn left(&self) -> Option<Duration> {
        let all = self.runtime? + self.ramp.unwrap_or_default();
        Some(all.saturating_sub(self.now()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runtime_counts_from_the_end_of_the_ramp() {
        let settings =
            Settings { ramp_time: Duration::from_micros(1), runtime: Some(Duration::from_secs(3600)), ..Settings::default() };
        let mut clock = Clock::new(&settings);
        while !clock.ramp_ends() {}
        assert!(!clock.ramp_ends() && !clock.is_over());
        assert!(clock.left().is_some_and(|left| left > Duration::from_secs(3500)));
        let over = Clock::new(&Settings { runtime: Some(Duration::from_nanos(1)), ..Settings::default() });
        while !over.is_over() {}
        assert!(Clock::new(&Settings::default()).left().is_none());
    }
}
