//! One clone at work: keeps its engine busy and measures.

#[cfg(test)]
mod tests;

use std::thread;
use std::time::{Duration, Instant};

use super::Progress;
use super::clock::Clock;
use crate::engine::{Ended, Engine, PathBytes};
use crate::pattern::{Pattern, Region, Step};
use crate::random::Random;
use crate::rate::Limiter;
use crate::stats::{Stats, Usage};
use crate::values::Direction;
use crate::verify::{History, Verifier, Written};
use crate::{Error, Job};

/// A transfer under way.
struct Flight {
    step: Step,
    /// Of the write; of a read that is verified, that of the write which it has to find.
    number: Option<u64>,
    check: bool,
    began: Instant,
    submitted: Option<Instant>,
}

/// What is moved next, and whether it is looked at.
struct Next {
    step: Step,
    number: Option<u64>,
    check: bool,
}

pub struct Worker<'r> {
    job: &'r Job,
    engine: Box<dyn Engine>,
    pattern: Pattern,
    file: String,
    verifier: Option<Verifier>,
    history: History,
    limiter: Option<Limiter>,
    clock: Clock,
    /// The runtime ends this phase: not one that verifies.
    is_timed: bool,
    stats: Stats,
    usage_before: Usage,
    paths_before: PathBytes,
    flights: Vec<Option<Flight>>,
    idle: Vec<usize>,
    ended: Vec<Ended>,
    writes: u64,
    unsynced: u64,
    phase_began: Duration,
    mismatch: Option<Error>,
    progress: &'r Progress,
}

impl<'r> Worker<'r> {
    pub fn new(
        job: &'r Job,
        clone: u32,
        mut engine: Box<dyn Engine>,
        region: Region,
        seed: u64,
        progress: &'r Progress,
    ) -> Worker<'r> {
        let depth = job.depth();
        let mut content = Random::new(seed, 6);
        (0..depth).for_each(|slot| content.fill(engine.buffer(slot)));
        // What another job wrote is verified by the seed that both name.
        let verifier = Verifier::new(&job.settings, job.settings.seed);
        Worker {
            job,
            engine,
            pattern: Pattern::new(job, region, seed),
            file: job.file(clone).display().to_string(),
            verifier,
            history: History::default(),
            limiter: Limiter::new(&job.settings),
            clock: Clock::new(&job.settings),
            is_timed: true,
            stats: Stats::default(),
            usage_before: Usage::of_this_thread(),
            paths_before: PathBytes::default(),
            flights: (0..depth).map(|_| None).collect(),
            idle: (0..depth).rev().collect(),
            ended: Vec::new(),
            writes: 0,
            unsynced: 0,
            phase_began: Duration::ZERO,
            mismatch: None,
            progress,
        }
    }

    /// Does everything, and answers what was measured until the end or the first error.
    pub fn run(mut self) -> (Stats, Option<Error>) {
        let error = self.loops().err().or(self.mismatch.take());
        self.stats.runtime = self.clock.now();
        self.stats.usage = Usage::of_this_thread().since(self.usage_before);
        self.stats.paths = self.engine.paths().map(|paths| paths.since(&self.paths_before));
        (self.stats, error)
    }

    fn loops(&mut self) -> Result<(), Error> {
        let settings = &self.job.settings;
        let mut done = 0;
        loop {
            let directions: Vec<Direction> = self.job.directions().collect();
            self.is_timed = true;
            self.phase(&directions, Worker::planned)?;
            if settings.end_fsync && settings.access.writes {
                // Not measured, as in fio.
                self.engine.sync(false)?;
            }
            if self.verifier.is_some() && settings.do_verify && settings.access.writes {
                let mut written = std::mem::take(&mut self.history).take();
                self.is_timed = false;
                self.phase(&[Direction::Read], move |_| written.next().map(from_history))?;
            }
            done += 1;
            if self.clock.is_over() || !settings.time_based && done >= settings.loops {
                return Ok(());
            }
            self.pattern.restart();
        }
    }

    fn planned(&mut self) -> Option<Next> {
        let step = self.pattern.next()?;
        let reads_only = !self.job.settings.access.writes;
        let (number, check) = match step.direction {
            Direction::Read => (None, reads_only && self.verifier.is_some()),
            Direction::Write => (Some(self.writes), false),
        };
        Some(Next { step, number, check })
    }

    /// Moves everything that a source gives, and waits for it.
    fn phase(&mut self, directions: &[Direction], mut next: impl FnMut(&mut Self) -> Option<Next>) -> Result<(), Error> {
        self.phase_began = self.clock.now();
        let outcome = self.transfers(&mut next).and_then(|()| self.drain());
        let time = self.clock.now().saturating_sub(self.phase_began);
        for direction in directions {
            self.stats.directions.get_mut(*direction).runtime += time;
        }
        outcome
    }

    fn transfers(&mut self, next: &mut impl FnMut(&mut Self) -> Option<Next>) -> Result<(), Error> {
        while !(self.is_timed && self.clock.is_over()) {
            if self.clock.ramp_ends() {
                self.begin_measuring();
            }
            let Some(next) = next(self) else { break };
            self.sync_if_due()?;
            if !self.pace(next.step.direction)? {
                break;
            }
            if self.verifier.is_some() && self.is_touched(&next.step) {
                self.drain()?;
            }
            self.start(next)?;
            // Also where only one may be under way: it has ended when it was started, and waiting would be measured.
            if self.idle.is_empty() {
                self.reap()?;
            }
        }
        Ok(())
    }

    /// What came before is not measured.
    fn begin_measuring(&mut self) {
        self.stats = Stats::default();
        self.usage_before = Usage::of_this_thread();
        self.paths_before = self.engine.paths().unwrap_or_default();
        self.phase_began = Duration::ZERO;
        self.limiter = Limiter::new(&self.job.settings);
    }

    /// Waits until the next transfer of a direction may begin; false: the runtime is over before.
    fn pace(&mut self, direction: Direction) -> Result<bool, Error> {
        let Some(limiter) = &self.limiter else { return Ok(true) };
        let wait = limiter.due(direction).saturating_sub(self.clock.now());
        if wait.is_zero() {
            return Ok(true);
        }
        // Otherwise what ends meanwhile would be noticed, and measured, too late.
        self.drain()?;
        let left = self.clock.left().filter(|_| self.is_timed);
        thread::sleep(left.map_or(wait, |left| wait.min(left)));
        Ok(left.is_none_or(|left| wait < left))
    }

    /// Is a transfer under way that has bytes in common with this one?
    fn is_touched(&self, step: &Step) -> bool {
        self.flights.iter().flatten().any(|flight| flight.step.overlaps(step))
    }

    fn sync_if_due(&mut self) -> Result<(), Error> {
        let settings = &self.job.settings;
        let due = |every: u64| every > 0 && self.unsynced >= every;
        match (due(settings.fsync), due(settings.fdatasync)) {
            (false, false) => Ok(()),
            (full, _) => self.sync(!full),
        }
    }

    fn sync(&mut self, data_only: bool) -> Result<(), Error> {
        self.drain()?;
        let began = Instant::now();
        self.engine.sync(data_only)?;
        self.stats.sync.record(ns(began.elapsed()));
        self.stats.full_syncs += u64::from(!data_only);
        self.unsynced = 0;
        Ok(())
    }

    fn start(&mut self, next: Next) -> Result<(), Error> {
        let Next { step, number, check } = next;
        let slot = self.idle.pop().expect("reap leaves one idle");
        if step.direction == Direction::Write {
            let block = &mut self.engine.buffer(slot)[..step.length as usize];
            fill(self.verifier.as_ref(), step.offset, self.writes, block);
            self.writes += 1;
            self.unsynced += 1;
        }
        if let Some(limiter) = &mut self.limiter {
            limiter.count(step.direction, step.length);
        }
        self.stats.depths.record(self.flights.len() - self.idle.len());
        let began = Instant::now();
        self.flights[slot] = Some(Flight { step, number, check, began, submitted: None });
        self.engine.start(slot, &step)?;
        if self.engine.is_asynchronous() {
            let submitted = Instant::now();
            self.stats.directions.get_mut(step.direction).submission.record(ns(submitted - began));
            self.flights[slot].as_mut().expect("just started").submitted = Some(submitted);
        }
        Ok(())
    }

    fn drain(&mut self) -> Result<(), Error> {
        while self.idle.len() < self.flights.len() {
            self.reap()?;
        }
        Ok(())
    }

    fn reap(&mut self) -> Result<(), Error> {
        self.engine.wait(&mut self.ended)?;
        let now = Instant::now();
        let mut ended = std::mem::take(&mut self.ended);
        let outcome = ended.drain(..).try_for_each(|ended| self.account(ended, now));
        self.ended = ended;
        outcome
    }

    fn account(&mut self, ended: Ended, now: Instant) -> Result<(), Error> {
        let flight = self.flights[ended.slot].take().expect("it was started");
        self.idle.push(ended.slot);
        let step = flight.step;
        let moved = ended.moved?;
        if moved == 0 {
            let end = std::io::Error::other(format!("the file ends before offset {}", step.offset));
            return Err(Error::system(step.direction.name(), &self.file, end));
        }
        self.measure(&flight, moved, now);
        self.progress.count(moved);
        match flight.number {
            Some(number) if step.direction == Direction::Write && self.verifier.is_some() => {
                self.history.add(Written { offset: step.offset, length: moved, number });
                Ok(())
            }
            _ if flight.check => self.check(&flight, ended.slot, moved),
            _ => Ok(()),
        }
    }

    fn measure(&mut self, flight: &Flight, moved: u64, now: Instant) {
        let completion = ns(now.saturating_duration_since(flight.submitted.unwrap_or(flight.began)));
        let in_phase = self.clock.now().saturating_sub(self.phase_began);
        let stats = self.stats.directions.get_mut(flight.step.direction);
        stats.bytes += moved;
        stats.transfers += 1;
        stats.short += u64::from(moved < flight.step.length);
        stats.completion.record(completion);
        stats.total.record(ns(now.saturating_duration_since(flight.began)));
        stats.samples.record(stats.runtime + in_phase, moved);
        self.stats.buckets.record(completion);
    }

    fn check(&mut self, flight: &Flight, slot: usize, moved: u64) -> Result<(), Error> {
        let Some(verifier) = &self.verifier else { return Ok(()) };
        let Step { offset, length, .. } = flight.step;
        let outcome = match moved < length {
            true => Err(format!("only {moved} bytes of it could be read")),
            false => verifier.check(offset, flight.number, &self.engine.buffer(slot)[..length as usize]),
        };
        let Err(what) = outcome else { return Ok(()) };
        let error = Error::Verify { file: self.file.clone(), offset, length, what };
        if self.job.settings.verify_fatal {
            return Err(error);
        }
        self.mismatch.get_or_insert(error);
        Ok(())
    }
}

fn from_history(block: Written) -> Next {
    let step = Step { direction: Direction::Read, offset: block.offset, length: block.length };
    Next { step, number: Some(block.number), check: true }
}

/// What a write moves: what can be verified, or random bytes of which some change every time, so that no two blocks are the
/// same.
fn fill(verifier: Option<&Verifier>, offset: u64, number: u64, block: &mut [u8]) {
    match verifier {
        Some(verifier) => verifier.fill(offset, number, block),
        None => {
            let mark = (offset ^ number.rotate_left(40)).to_le_bytes();
            let length = block.len().min(mark.len());
            block[..length].copy_from_slice(&mark[..length]);
        }
    }
}

fn ns(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
