//! `peerfs bench`: runs fio job files, and says which way the bytes went.

use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use peerfs_bench::{Error, Plan, Progress, Report, command_line};

use crate::args::BenchArgs;
use crate::failure::Usage;
use crate::output;

/// How often progress is shown.
const REFRESH: Duration = Duration::from_millis(250);

/// Steps of the progress bar.
const STEPS: u64 = 1000;

pub fn run(args: BenchArgs) -> Result<ExitCode> {
    let request = command_line::parse(&args.words).map_err(as_usage)?;
    let plan = Plan::new(&request.sections, request.ignore_unknown).map_err(as_usage)?;
    for note in plan.notes() {
        eprintln!("peerfs: {note}");
    }
    // Before the work: afterwards it would be lost.
    let create = |file: &PathBuf| File::create(file).with_context(|| format!("cannot write {}", file.display()));
    let file = request.output.as_ref().map(create).transpose()?;
    let report = watch(&plan, request.eta.unwrap_or_else(|| std::io::stderr().is_terminal()))?;
    let json = request.json.then(|| format!("{:#}\n", report.json()));
    let text = json.into_iter().chain(request.normal.then(|| report.text())).collect::<String>();
    match file {
        Some(mut file) => file.write_all(text.as_bytes()).context("cannot write the report")?,
        None => output::print(&text)?,
    }
    let mut errors = report.errors();
    let Some((job, error)) = errors.next() else { return Ok(ExitCode::SUCCESS) };
    let others = match errors.count() {
        0 => String::new(),
        count => format!("; and {} more, see the report", output::count(count as u64, "error")),
    };
    bail!("job {job}: {error}{others}")
}

/// What was typed wrongly is a usage error, unless it is a job file that cannot be read.
fn as_usage(error: Error) -> anyhow::Error {
    match error {
        Error::System { .. } => error.into(),
        other => Usage(other.to_string()).into(),
    }
}

/// Runs the plan, with a line of progress on a terminal.
fn watch(plan: &Plan, show: bool) -> Result<Report> {
    let progress = Progress::new();
    if !show {
        return Ok(peerfs_bench::run(plan, &progress));
    }
    let bar = ProgressBar::with_draw_target(Some(STEPS), ProgressDrawTarget::stderr());
    bar.set_style(ProgressStyle::with_template("{bar:30} {percent}% {msg}")?);
    thread::scope(|scope| {
        let shown = scope.spawn(|| {
            while !progress.has_ended() {
                draw(&bar, &progress);
                thread::park_timeout(REFRESH);
            }
            bar.finish_and_clear();
        });
        let report = peerfs_bench::run(plan, &progress);
        shown.thread().unpark();
        Ok(report)
    })
}

fn draw(bar: &ProgressBar, progress: &Progress) {
    let now = progress.snapshot();
    let left = now.left.map_or_else(|| "?".to_owned(), |left| format!("{} s", left.as_secs_f64().ceil()));
    bar.set_position((now.share * STEPS as f64) as u64);
    let moved = output::bytes(now.moved);
    bar.set_message(format!("{}: {moved}, {} transfers, eta {left}", now.names.join(", "), now.transfers));
}
