//! Time that jumps: whoever waits until a deadline for something that cannot
//! happen on this thread gets there at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use peerfs_p2p::{Clock, Gate, SystemClock};

/// See the module. Waits without a deadline are real ones.
#[derive(Default)]
pub(super) struct JumpClock {
    now_ns: AtomicU64,
    real: SystemClock,
}

impl JumpClock {
    pub(super) fn advance(&self, by: Duration) {
        self.now_ns.fetch_add(by.as_nanos() as u64, Ordering::SeqCst);
    }
}

impl Clock for JumpClock {
    fn now(&self) -> Duration {
        Duration::from_nanos(self.now_ns.load(Ordering::SeqCst))
    }

    fn wait(&self, gate: &Arc<Gate>, deadline: Option<Duration>, done: &mut dyn FnMut() -> bool) -> bool {
        let Some(deadline) = deadline else {
            return self.real.wait(gate, None, done);
        };
        if done() {
            return true;
        }
        self.now_ns.fetch_max(deadline.as_nanos() as u64, Ordering::SeqCst);
        done()
    }
}
