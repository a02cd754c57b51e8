//! Runs cases one after the other. Cases that want the same mount share it, each in a directory of its own; after each
//! nothing may be left of what it mapped.

use std::collections::HashMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use crate::backend::Backend;
use crate::case::{Case, Setup};
use crate::kit::ScratchMount;
use crate::report::{Line, Report, Verdict};
use crate::scene::Scene;

/// What is asked to end is gone after so long, or never.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs these cases on a backend; each line is shown as it comes.
pub fn run(backend: &dyn Backend, cases: &[Case], seed: u64, mut show: impl FnMut(&Line)) -> Report {
    let mut mounts = HashMap::new();
    let mut report = Report::default();
    for case in cases {
        let line = one(backend, case, seed, &mut mounts);
        show(&line);
        report.lines.push(line);
    }
    report
}

fn one(backend: &dyn Backend, case: &Case, seed: u64, mounts: &mut HashMap<Setup, ScratchMount>) -> Line {
    let start = Instant::now();
    let line = |verdict, asserted, start: Instant| Line {
        case: case.name,
        rule: case.rule,
        backend: backend.name(),
        verdict,
        asserted,
        took_ms: start.elapsed().as_millis() as u64,
    };
    if let Some(missing) = case.needs.iter().find(|need| !backend.has(**need)) {
        return line(Verdict::Skipped(missing.lack().to_owned()), Vec::new(), start);
    }
    let (verdict, asserted) = match on_mount(backend, case, seed, mounts) {
        Ok(asserted) => (Verdict::Passed, asserted),
        // Whatever went wrong may have left the mount in disorder.
        Err(error) => {
            mounts.remove(&case.setup);
            (Verdict::Failed(format!("{error:#}")), Vec::new())
        }
    };
    line(verdict, asserted, start)
}

fn on_mount(backend: &dyn Backend, case: &Case, seed: u64, mounts: &mut HashMap<Setup, ScratchMount>) -> Result<Vec<String>> {
    let mut scratch = match mounts.remove(&case.setup) {
        Some(shared) => shared,
        None => mounted(backend, case.setup)?,
    };
    let directory = scratch.join(case.name);
    fs::create_dir(&directory).with_context(|| directory.display().to_string())?;
    let mut scene = Scene::new(backend, &mut scratch, directory.clone(), seed);
    let outcome = catch_unwind(AssertUnwindSafe(|| (case.run)(&mut scene)));
    let asserted = scene.into_evidence();
    outcome.map_err(|_| anyhow!("the case itself panicked"))??;
    ensure!(!asserted.is_empty(), "the case asserts no path and no reason");
    if !case.setup.private {
        nothing_left(&scratch)?;
        fs::remove_dir_all(&directory)?;
        mounts.insert(case.setup, scratch);
    }
    Ok(asserted)
}

fn mounted(backend: &dyn Backend, setup: Setup) -> Result<ScratchMount> {
    let topology = setup.topology.file()?;
    let mut options = setup.options.to_owned();
    if let Some(file) = &topology {
        options = format!("{options}{}topology={}", if options.is_empty() { "" } else { "," }, file.path().display());
    }
    backend.mount(setup.aperture, &options)
}

/// Sessions end in the background once their last descriptor is closed.
fn nothing_left(scratch: &ScratchMount) -> Result<()> {
    let start = Instant::now();
    loop {
        let info = scratch.info()?;
        let left: Vec<&str> = ["sessions", "contexts", "mappings", "windows"].into_iter().filter(|key| info[key] != 0).collect();
        if left.is_empty() {
            return Ok(());
        }
        ensure!(start.elapsed() < PATIENCE, "left behind: {left:?} in {info}");
        std::thread::yield_now();
    }
}
