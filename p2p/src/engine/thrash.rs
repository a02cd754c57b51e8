//! Keeps a range that CPU and device fight over from being mapped and revoked
//! all the time: it falls back for a while.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Mutex, MutexGuard, lock};
use crate::types::ObjectId;

/// Objects are spread over so many locks, so that decisions of different files do not meet at one.
const SHARDS: usize = 16;
/// Chunks remembered in each shard. Beyond it, one that is new takes the place of the one that was revoked longest ago.
const CHUNKS_MAX: usize = 256;

/// When chunks were revoked, oldest first.
type Recent = HashMap<(ObjectId, u64), VecDeque<Duration>>;

pub(super) struct Thrash {
    revocations_max: usize,
    window: Duration,
    shards: [Shard; SHARDS],
}

#[derive(Default)]
struct Shard {
    /// Chunks that are remembered; while there are none, nobody needs the lock.
    count: AtomicUsize,
    recent: Mutex<Recent>,
}

impl Thrash {
    pub(super) fn new(revocations_max: usize, window: Duration) -> Self {
        Thrash { revocations_max, window, shards: std::array::from_fn(|_| Shard::default()) }
    }

    pub(super) fn record(&self, object: ObjectId, chunk: u64, now: Duration) {
        let shard = self.shard(object);
        let mut recent = lock(&shard.recent);
        if recent.len() >= CHUNKS_MAX {
            recent.retain(|_, times| times.back().is_some_and(|t| *t + self.window > now));
        }
        if recent.len() >= CHUNKS_MAX
            && !recent.contains_key(&(object, chunk))
            && let Some(other) = recent.iter().min_by_key(|(_, times)| times.back()).map(|(key, _)| *key)
        {
            recent.remove(&other);
        }
        let times = recent.entry((object, chunk)).or_default();
        times.push_back(now);
        if times.len() > self.revocations_max + 1 {
            times.pop_front();
        }
        shard.count.store(recent.len(), Ordering::SeqCst);
    }

    /// How long the chunk is still not worth another try.
    pub(super) fn blocked(&self, object: ObjectId, chunk: u64, now: Duration) -> Option<Duration> {
        let recent = self.shard(object).look()?;
        self.left(recent.get(&(object, chunk))?, now)
    }

    /// All blocked chunks of an object, in order.
    pub(super) fn blocked_chunks(&self, object: ObjectId, now: Duration) -> Vec<(u64, Duration)> {
        let Some(recent) = self.shard(object).look() else { return Vec::new() };
        let mut chunks: Vec<_> = recent
            .iter()
            .filter(|((of, _), _)| *of == object)
            .filter_map(|((_, chunk), times)| Some((*chunk, self.left(times, now)?)))
            .collect();
        chunks.sort_unstable();
        chunks
    }

    fn shard(&self, object: ObjectId) -> &Shard {
        &self.shards[object.0 as usize % SHARDS]
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

impl Shard {
    /// `None` while nothing is remembered.
    fn look(&self) -> Option<MutexGuard<'_, Recent>> {
        (self.count.load(Ordering::SeqCst) > 0).then(|| lock(&self.recent))
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_is_limited_however_many_others_are_contested() {
        let thrash = Thrash::new(2, Duration::from_secs(1));
        let now = Duration::from_secs(5);
        let hot = ObjectId(16);
        for chunk in 0..10 * CHUNKS_MAX as u64 {
            thrash.record(hot, chunk, now);
        }
        assert!(thrash.blocked(hot, 3, now).is_none() && thrash.blocked_chunks(hot, now).is_empty());
        for _ in 0..3 {
            thrash.record(hot, 7, now);
        }
        assert_eq!(thrash.blocked_chunks(hot, now), [(7, Duration::from_secs(1))]);
        assert!(thrash.blocked(ObjectId(17), 7, now).is_none(), "another object");
        assert!(thrash.blocked(hot, 7, now + Duration::from_secs(1)).is_none(), "it has calmed down");
    }
}
