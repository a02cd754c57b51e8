//! Keeps a range that CPU and device fight over from being mapped and revoked
//! all the time: it falls back for a while.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use crate::sync::{Mutex, lock};
use crate::types::ObjectId;

/// Chunks remembered. Beyond it, further ones are not limited until others have calmed down.
const CHUNKS_MAX: usize = 4096;

pub(super) struct Thrash {
    revocations_max: usize,
    window: Duration,
    recent: Mutex<HashMap<(ObjectId, u64), VecDeque<Duration>>>,
}

impl Thrash {
    pub(super) fn new(revocations_max: usize, window: Duration) -> Self {
        Thrash { revocations_max, window, recent: Mutex::default() }
    }

    pub(super) fn record(&self, object: ObjectId, chunk: u64, now: Duration) {
        let mut recent = lock(&self.recent);
        if recent.len() >= CHUNKS_MAX {
            recent.retain(|_, times| times.back().is_some_and(|t| *t + self.window > now));
            if recent.len() >= CHUNKS_MAX {
                return;
            }
        }
        let times = recent.entry((object, chunk)).or_default();
        times.push_back(now);
        if times.len() > self.revocations_max + 1 {
            times.pop_front();
        }
    }

    /// How long the chunk is still not worth another try.
    pub(super) fn blocked(&self, object: ObjectId, chunk: u64, now: Duration) -> Option<Duration> {
        let recent = lock(&self.recent);
        self.left(recent.get(&(object, chunk))?, now)
    }

    /// All blocked chunks of an object, in order.
    pub(super) fn blocked_chunks(&self, object: ObjectId, now: Duration) -> Vec<(u64, Duration)> {
        let recent = lock(&self.recent);
        let mut chunks: Vec<_> = recent
            .iter()
            .filter(|((of, _), _)| *of == object)
            .filter_map(|((_, chunk), times)| Some((*chunk, self.left(times, now)?)))
            .collect();
        chunks.sort_unstable();
        chunks
    }

    /// The queue holds one more than is allowed, so its oldest entry decides.
    fn left(&self, times: &VecDeque<Duration>, now: Duration) -> Option<Duration> {
        if times.len() <= self.revocations_max {
            return None;
        }
        let until = *times.front()? + self.window;
        (until > now).then(|| until - now)
    }
}
