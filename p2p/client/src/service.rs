//! The service thread: hears of revocations, makes the importer stop, acknowledges.
//!
//! It never waits for one importer while another could be acknowledged: there is
//! one waiting point, and whoever leaves a revoked window last wakes it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use peerfs_abi::ioctl::{ACKS_MAX, Event};
use peerfs_sys::Window;

use crate::grant::Grant;
use crate::session::Core;
use crate::waiting;

/// A revocation that somebody is still inside of.
struct Pending {
    grant_id: u64,
    grants: Vec<Arc<Grant>>,
    /// Held so that the memory stays mapped until everybody has left.
    windows: Vec<Arc<Window>>,
    expires: Instant,
}

/// Serves until the session is dropped or the server is gone.
pub(crate) fn run(core: &Core) {
    block_signals();
    waiting::serve();
    let mut pending = Vec::new();
    let mut events = Vec::new();
    while !core.stopping.load(Ordering::Acquire) {
        let timeout = next_timeout(&pending);
        let heard = core.calls.wait(timeout).and_then(|()| core.calls.events(&mut events));
        if heard.is_err() {
            core.gone.store(true, Ordering::Release);
            return;
        }
        // Those that have ended are acknowledged before the next ones are begun: the deadline is the same for all.
        for portion in events.chunks(ACKS_MAX) {
            pending.extend(portion.iter().filter_map(|event| begin(core, event)));
            settle(core, &mut pending);
        }
        if events.is_empty() {
            settle(core, &mut pending);
        }
        events.clear();
    }
}

/// The program's signals are for its own threads; those that name an instruction stay.
fn block_signals() {
    let mut signals = SigSet::all();
    for own in [Signal::SIGBUS, Signal::SIGSEGV, Signal::SIGILL, Signal::SIGFPE, Signal::SIGTRAP] {
        signals.remove(own);
    }
    // It can fail only for an invalid set.
    let _ = signals.thread_block();
}

/// Stops new accesses and tells the importer. `None` when there is nothing to acknowledge later.
fn begin(core: &Core, event: &Event) -> Option<Pending> {
    let acknowledge = core.options.acknowledge;
    let grants = match acknowledge {
        true => core.registry.take(event.grant_id),
        false => core.registry.holders(event.grant_id),
    };
    let windows = match acknowledge {
        true => grants.iter().filter_map(|grant| grant.close()).collect(),
        false => Vec::new(),
    };
    let expires = Instant::now() + Duration::from_millis(event.deadline_ms.into());
    let told = tell(&grants, event);
    core.revocations.fetch_add(1, Ordering::AcqRel);
    // An importer whose callback failed may not have stopped: the server's cut is the answer to that.
    (acknowledge && told).then_some(Pending { grant_id: event.grant_id, grants, windows, expires })
}

/// Runs the callbacks; `false` when one panicked.
fn tell(grants: &[Arc<Grant>], event: &Event) -> bool {
    let notify = |grant: &Arc<Grant>| grant.shared.notify(event);
    catch_unwind(AssertUnwindSafe(|| grants.iter().for_each(notify))).is_ok()
}

/// Acknowledges what everybody has left, and gives up what is overdue: that was cut.
fn settle(core: &Core, pending: &mut Vec<Pending>) {
    let now = Instant::now();
    let mut stopped = Vec::new();
    pending.retain_mut(|revocation| {
        let left = revocation.grants.iter().all(|grant| grant.is_empty());
        if left {
            revocation.windows.clear();
            stopped.push(revocation.grant_id);
        }
        !left && now < revocation.expires
    });
    if !stopped.is_empty() {
        // It fails when the server is gone: nothing is owed then.
        let _ = core.calls.acknowledge(&stopped);
    }
}

fn next_timeout(pending: &[Pending]) -> Option<Duration> {
    let first = pending.iter().map(|revocation| revocation.expires).min()?;
    Some(first.saturating_duration_since(Instant::now()))
}
