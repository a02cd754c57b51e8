//! Waiting for a lock that has no timeout of its own, as flock(2) has none.

use std::thread;
use std::time::{Duration, Instant};

/// First and longest pause between attempts.
const PAUSE: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(50));

/// Tries until it succeeds, fails, or `deadline` has passed; at least once. `None`: somebody else had it all the time.
pub fn until<T, E>(deadline: Instant, mut attempt: impl FnMut() -> Result<Option<T>, E>) -> Result<Option<T>, E> {
    let mut pause = PAUSE.0;
    loop {
        if let Some(got) = attempt()? {
            return Ok(Some(got));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        thread::sleep(pause.min(left));
        pause = (pause * 2).min(PAUSE.1);
    }
}
