//! Runs a plan: stage after stage, the clones of a stage at the same time.

mod clock;
mod progress;
mod worker;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::{Duration, Instant, SystemTime};

pub use progress::Progress;
use worker::Worker;

use crate::claims::Claims;
use crate::engine::{self, Engine};
use crate::pattern::Region;
use crate::random::{Random, mix};
use crate::report::{CloneReport, Report};
use crate::stats::Stats;
use crate::{Error, Job, Plan, files};

/// Runs all jobs. What goes wrong in a job ends that clone and is part of the report; the others go on.
pub fn run(plan: &Plan, progress: &Progress) -> Report {
    let (began, started) = (SystemTime::now(), Instant::now());
    let (mut clones, mut opened) = (Vec::new(), Vec::new());
    for stage in plan.stages() {
        progress.begin(stage);
        clones.extend(run_stage(stage, progress, started, &mut opened));
    }
    // Later stages may have used them too.
    opened.into_iter().for_each(|(job, clone)| files::remove(job, clone));
    progress.end();
    Report::new(plan, clones, began)
}

fn each_clone(job: &Job) -> impl Iterator<Item = u32> {
    0..job.settings.clones as u32
}

/// A clone whose file is there and open.
struct Ready<'p> {
    job: &'p Job,
    clone: u32,
    seed: u64,
    region: Region,
    engine: Box<dyn Engine>,
}

/// Adds to `opened` the clones whose files could be used.
fn run_stage<'p>(stage: &'p [Job], progress: &Progress, started: Instant, opened: &mut Vec<(&'p Job, u32)>) -> Vec<CloneReport> {
    let clones: Vec<(&Job, u32)> = stage.iter().flat_map(|job| each_clone(job).map(move |clone| (job, clone))).collect();
    let mut claims = Claims::default();
    // All files first: opening one to lay it out would disturb who has it mapped already.
    let regions: Vec<_> = clones.iter().map(|(job, clone)| prepare(job, *clone, &mut claims)).collect();
    let ready: Vec<_> = clones.iter().zip(regions).map(|((job, clone), region)| make_ready(job, *clone, region?)).collect();
    opened.extend(ready.iter().flatten().map(|ready| (ready.job, ready.clone)));
    ready.iter().flatten().for_each(|ready| progress.expect(ready.job, ready.region));
    progress.start();
    let gate = Mutex::new(());
    thread::scope(|scope| {
        // All begin together, once the last thread is there or could not be started.
        let closed = wait_at(&gate);
        let threads: Vec<_> = ready.into_iter().map(|ready| spawn(scope, ready?, &gate, progress)).collect();
        drop(closed);
        let outcomes = threads.into_iter().map(|thread| match thread.map(ScopedJoinHandle::join) {
            Ok(Ok((stats, error))) => (stats, error),
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            Err(error) => (Stats::default(), Some(error)),
        });
        let report = |((job, _), (stats, error)): (&(&Job, u32), (Stats, Option<Error>))| CloneReport {
            job: job.index as usize,
            stats,
            error,
            elapsed: started.elapsed(),
        };
        clones.iter().zip(outcomes).map(report).collect()
    })
}

fn prepare(job: &Job, clone: u32, claims: &mut Claims) -> Result<Region, Error> {
    claims.add(job, clone)?;
    files::prepare(job, clone)
}

fn make_ready(job: &Job, clone: u32, region: Region) -> Result<Ready<'_>, Error> {
    let base = if job.settings.repeatable { job.settings.seed } else { peerfs_sys::random_u64().unwrap_or(job.settings.seed) };
    let seed = mix(base ^ mix(job.index << 32 | u64::from(clone)));
    Ok(Ready { job, clone, seed, region, engine: engine::open(job, clone, region)? })
}

fn spawn<'s>(
    scope: &'s Scope<'s, '_>,
    ready: Ready<'s>,
    gate: &'s Mutex<()>,
    progress: &'s Progress,
) -> Result<ScopedJoinHandle<'s, (Stats, Option<Error>)>, Error> {
    let job = ready.job;
    let thread = thread::Builder::new().name("peerfs-bench".to_owned()).spawn_scoped(scope, move || work(ready, gate, progress));
    thread.map_err(|source| Error::system("start a thread for job", &job.name, source))
}

fn wait_at(gate: &Mutex<()>) -> MutexGuard<'_, ()> {
    gate.lock().unwrap_or_else(PoisonError::into_inner)
}

fn work(ready: Ready<'_>, gate: &Mutex<()>, progress: &Progress) -> (Stats, Option<Error>) {
    let Ready { job, clone, seed, region, engine } = ready;
    drop(wait_at(gate));
    let (shortest, longest) = job.settings.start_delay;
    let range = (longest - shortest).as_micros() as u64 + 1;
    thread::sleep(shortest + Duration::from_micros(Random::new(seed, 5).below(range)));
    Worker::new(job, clone, engine, region, seed, progress).run()
}
