//! The engine under many schedules: shuttle decides which thread goes on at each
//! lock, condition variable and atomic, so a race needs no luck to be seen, a lost
//! wake-up is a deadlock that it reports, and a failing schedule can be replayed.
//!
//! Time stands still. A deadline of zero lets an acknowledgement come before the
//! cut or after it, as the schedule has it. One that never comes makes everybody
//! depend on being woken.

mod aperture;
mod client;
mod closing;
mod coherence;
mod ending;
mod entering;
mod page_cache;
mod parts;
mod pins;
mod revocation;

use std::time::Duration;

use shuttle::scheduler::{PctScheduler, RandomScheduler, ReplayScheduler, Scheduler, UncontrolledNondeterminismCheckScheduler};
use shuttle::{Config, MaxSteps, Runner};

use super::world::{FILE, MIB, World, grants, refusal};
use crate::api::EngineConfig;
use crate::types::Range;

/// What most of the properties map: one block.
const BLOCK: Range = Range { start: 0, end: 4096 };

/// Schedules of each property, unless `PEERFS_SHUTTLE_ITERATIONS` says otherwise. More of them find rarer races.
const ITERATIONS: usize = 1000;
/// Preemptions at chosen moments that a schedule by PCT has at most.
const PREEMPTIONS: usize = 3;
/// Far more than any of the properties needs: more means that threads turn in a circle.
const STEPS_MAX: usize = 200_000;
/// Of each thread, bytes: formatting and system calls need more than shuttle's own default.
const STACK_BYTES: usize = 256 << 10;
/// Later than everything. (Deadlines are sums, so it is not the largest duration.)
const NEVER: Duration = Duration::from_secs(1 << 30);

/// Checks a property over half as many schedules that are drawn evenly, and as many with few preemptions (PCT), which
/// finds what needs a thread to stay behind for long. A failing schedule is printed; `PEERFS_SHUTTLE_REPLAY` set to it
/// runs it again.
fn explore(property: fn()) {
    if let Ok(schedule) = std::env::var("PEERFS_SHUTTLE_REPLAY") {
        return run(ReplayScheduler::new_from_encoded(&schedule), property);
    }
    let iterations = iterations();
    run(RandomScheduler::new(iterations.div_ceil(2)), property);
    run(PctScheduler::new(PREEMPTIONS, iterations.div_ceil(2)), property);
    // What else is chance would keep a schedule from being replayed.
    run(UncontrolledNondeterminismCheckScheduler::new(RandomScheduler::new(2)), property);
}

fn run(scheduler: impl Scheduler + 'static, property: fn()) {
    let mut config = Config::new();
    config.max_steps = MaxSteps::FailAfter(STEPS_MAX);
    config.stack_size = STACK_BYTES;
    // Of weaker orderings than sequential consistency shuttle tests nothing; that is known.
    config.silence_warnings = true;
    Runner::new(scheduler, config).run(property);
}

fn iterations() -> usize {
    match std::env::var("PEERFS_SHUTTLE_ITERATIONS") {
        Ok(text) => text.parse().expect("PEERFS_SHUTTLE_ITERATIONS is a number of schedules"),
        Err(_) => ITERATIONS,
    }
}

/// Importers that never acknowledge in time: whoever revokes cuts at once.
fn hasty() -> EngineConfig {
    EngineConfig { deadline: Duration::ZERO, ..patient() }
}

/// Nobody gives up: maps wait until they are let in, and revokers until the last importer has acknowledged.
fn patient() -> EngineConfig {
    EngineConfig {
        deadline: NEVER,
        busy_wait: NEVER,
        // More than the CPU or a closer can disturb in any of the properties.
        map_attempts: 32,
        thrash_revocations: usize::MAX - 1,
        grants_per_session: 8,
        ..EngineConfig::default()
    }
}
