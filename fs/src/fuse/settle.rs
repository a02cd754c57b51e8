//! The answer to a WRITE whose cached pages have to be dropped first.
//!
//! [`Operations::refetched`] says which. The kernel keeps the last page of a WRITE locked until the answer if it did not
//! know the rest of the page; dropping that one would wait for ourselves. It cannot be stale then, but which of the
//! two holds is not visible from here: so the drop is waited for, but not for ever.

use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use fuser::ReplyWrite;
use peerfs_p2p::Range;

use super::answer::{answer, contain};
use super::pool::Pool;
use crate::cpu_cache::CpuCache;
use crate::error::Result;
use crate::ops::Operations;
use crate::types::{Ino, WriteOrigin};

/// Dropping a page that nobody holds takes microseconds.
const PATIENCE: Duration = Duration::from_millis(100);
const THREADS: usize = 512;

/// Drops pages on threads of its own.
#[derive(Clone)]
pub(super) struct Settle {
    cache: Arc<dyn CpuCache>,
    drops: Arc<Pool>,
    answers: Arc<Pool>,
}

impl Settle {
    pub(super) fn new(cache: Arc<dyn CpuCache>) -> Settle {
        Settle { cache, drops: Arc::new(Pool::new(THREADS)), answers: Arc::new(Pool::new(THREADS)) }
    }

    /// Answers a WRITE, at once if no page is in doubt.
    pub(super) fn answer(
        &self,
        ops: &dyn Operations,
        ino: Ino,
        offset: u64,
        origin: WriteOrigin,
        reply: ReplyWrite,
        outcome: Result<u32>,
    ) {
        let send = |reply: ReplyWrite, count: u32| reply.written(count);
        let stale = match outcome {
            Ok(count) if origin.is_buffered() => ops.refetched(ino, Range::new(offset, count.into())),
            _ => None,
        };
        let Some(stale) = stale else {
            return answer("write", reply, outcome, send);
        };
        let (done, dropped) = mpsc::sync_channel(1);
        let cache = Arc::clone(&self.cache);
        self.drops.run(move || {
            contain("drop pages", || {
                for range in &stale.ranges {
                    if let Err(error) = cache.invalidate(ino, *range) {
                        tracing::warn!(ino, %error, "cached pages could not be dropped after a write");
                    }
                }
                drop(stale);
            });
            // Nobody waits any more after the patience has ended.
            let _ = done.try_send(());
        });
        self.answers.run(move || {
            if dropped.recv_timeout(PATIENCE).is_err() {
                tracing::debug!(ino, "the answer to a write did not wait for its cached pages any longer");
            }
            contain("write", || answer("write", reply, outcome, send));
        });
    }
}
