//! What a run answers.

mod json;
mod numbers;
mod text;

use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::settings::Settings;
use crate::stats::Stats;
use crate::{Error, Job, Plan};

/// One clone's outcome.
#[derive(Debug)]
pub struct CloneReport {
    /// Which job of the plan it is of.
    pub job: usize,
    /// What was measured.
    pub stats: Stats,
    /// What ended it early.
    pub error: Option<Error>,
    /// From the start of the run to its end.
    pub elapsed: Duration,
}

/// The outcome of a run.
#[derive(Debug)]
pub struct Report {
    began: SystemTime,
    global: Vec<(String, String)>,
    rows: Vec<Row>,
    errors: Vec<(String, Error)>,
}

/// What is reported together: a clone, or a group.
#[derive(Debug)]
struct Row {
    name: String,
    group: u32,
    clones: u64,
    written: Vec<(String, String)>,
    settings: Settings,
    stats: Stats,
    /// errno.h of the first error; 0 without any.
    errno: i32,
    elapsed: Duration,
}

impl Report {
    pub(crate) fn new(plan: &Plan, clones: Vec<CloneReport>, began: SystemTime) -> Report {
        let mut report = Report { began, global: plan.global.clone(), rows: Vec::new(), errors: Vec::new() };
        for clone in clones {
            report.add(&plan.jobs[clone.job], clone);
        }
        report
    }

    fn add(&mut self, job: &Job, clone: CloneReport) {
        let errno = clone.error.as_ref().map_or(0, Error::errno);
        match self.rows.last_mut() {
            Some(row) if row.group == job.group && job.settings.group_reporting => row.add(&clone, errno),
            _ => self.rows.push(Row {
                name: job.name.clone(),
                group: job.group,
                clones: 1,
                written: job.written.clone(),
                settings: job.settings.clone(),
                stats: clone.stats,
                errno,
                elapsed: clone.elapsed,
            }),
        }
        self.errors.extend(clone.error.map(|error| (job.name.clone(), error)));
    }

    /// What went wrong, with the name of the job.
    pub fn errors(&self) -> impl Iterator<Item = (&str, &Error)> {
        self.errors.iter().map(|(name, error)| (name.as_str(), error))
    }

    /// As `fio --output-format=json` prints it, with an object `peerfs` besides in each job.
    pub fn json(&self) -> Value {
        json::report(self)
    }

    /// As fio prints it for people.
    pub fn text(&self) -> String {
        text::report(self)
    }
}

impl Row {
    fn add(&mut self, clone: &CloneReport, errno: i32) {
        self.clones += 1;
        self.stats.add(&clone.stats);
        self.elapsed = self.elapsed.max(clone.elapsed);
        if self.errno == 0 {
            self.errno = errno;
        }
    }
}
