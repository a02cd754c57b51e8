//! How far a run is, for whoever shows it meanwhile.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::Job;
use crate::pattern::Region;

/// Shared by the clones and who shows it.
#[derive(Debug, Default)]
pub struct Progress {
    moved: AtomicU64,
    transfers: AtomicU64,
    stage: Mutex<Stage>,
    ended: AtomicBool,
}

#[derive(Debug, Default)]
struct Stage {
    names: Vec<String>,
    begun: Option<Instant>,
    moved_before: u64,
    /// Bytes; of jobs that end with their work.
    expected: u64,
    /// Of jobs that end with their time, the longest.
    time: Duration,
}

/// A look at it.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// Names of the jobs that run.
    pub names: Vec<String>,
    /// Bytes moved so far, by all stages.
    pub moved: u64,
    /// Transfers so far.
    pub transfers: u64,
    /// Share of the stage that is done, 0 to 1.
    pub share: f64,
    /// How long the stage will take.
    pub left: Option<Duration>,
}

impl Progress {
    /// Nothing has begun.
    pub fn new() -> Progress {
        Progress::default()
    }

    pub(crate) fn begin(&self, jobs: &[Job]) {
        let names = jobs.iter().map(|job| job.name.clone()).collect();
        let moved_before = self.moved.load(Ordering::Relaxed);
        *self.lock() = Stage { names, begun: None, moved_before, expected: 0, time: Duration::ZERO };
    }

    pub(crate) fn expect(&self, job: &Job, region: Region) {
        let mut stage = self.lock();
        let settings = &job.settings;
        if let Some(runtime) = settings.runtime.filter(|_| settings.time_based) {
            stage.time = stage.time.max(runtime + settings.ramp_time);
            return;
        }
        let passes = if settings.verify.is_some() && settings.do_verify && settings.access.writes { 2 } else { 1 };
        stage.expected = stage.expected.saturating_add(region.total.saturating_mul(settings.loops).saturating_mul(passes));
    }

    /// The files are laid out, and the clones begin.
    pub(crate) fn start(&self) {
        self.lock().begun = Some(Instant::now());
    }

    pub(crate) fn count(&self, bytes: u64) {
        self.moved.fetch_add(bytes, Ordering::Relaxed);
        self.transfers.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }

    /// Is the run over?
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// A look at it now.
    pub fn snapshot(&self) -> Snapshot {
        let stage = self.lock();
        let moved = self.moved.load(Ordering::Relaxed);
        let elapsed = stage.begun.map_or(Duration::ZERO, |begun| begun.elapsed());
        let by_work = (stage.expected > 0).then(|| (moved - stage.moved_before) as f64 / stage.expected as f64);
        let by_time = (!stage.time.is_zero()).then(|| elapsed.as_secs_f64() / stage.time.as_secs_f64());
        // The slower one; nothing is known while files are laid out.
        let share = by_work.into_iter().chain(by_time).reduce(f64::min).unwrap_or(0.0).min(1.0);
        let left = (share > 0.0).then(|| elapsed.mul_f64(((1.0 - share) / share).min(1e6)));
        let transfers = self.transfers.load(Ordering::Relaxed);
        Snapshot { names: stage.names.clone(), moved, transfers, share, left }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
