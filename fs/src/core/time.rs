//! Points in time, as operations and as records have them.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::store::Timestamp as Recorded;
use crate::types::{SetTime, Timestamp};

const NANOSECONDS: i128 = 1_000_000_000;

/// The server's clock.
pub(super) fn now() -> Timestamp {
    let nanoseconds = match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(after) => after.as_nanos() as i128,
        Err(before) => -(before.duration().as_nanos() as i128),
    };
    Timestamp { seconds: nanoseconds.div_euclid(NANOSECONDS) as i64, nanoseconds: nanoseconds.rem_euclid(NANOSECONDS) as u32 }
}

/// The time that a request means.
pub(super) fn resolve(time: SetTime, now: Timestamp) -> Timestamp {
    match time {
        SetTime::Now => now,
        SetTime::At(time) => time,
    }
}

pub(super) fn to_record(time: Timestamp) -> Recorded {
    Recorded { sec: time.seconds, nsec: time.nanoseconds.min(NANOSECONDS as u32 - 1) }
}

pub(super) fn from_record(time: Recorded) -> Timestamp {
    Timestamp { seconds: time.sec, nanoseconds: time.nsec }
}
