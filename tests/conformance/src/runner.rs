//! Runs cases one after the other. Cases that want the same mount share it, each in a directory of its own; after each
//! nothing may be left of what it mapped.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};

use crate::backend::Backend;
use crate::case::{Case, Setup};
use crate::evidence::Fact;
use crate::kit::ScratchMount;
use crate::leftovers::Books;
use crate::report::{Line, Report, Verdict};
use crate::scene::Scene;

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
        Ok(asserted) => (Verdict::Passed, asserted.iter().map(Fact::to_string).collect()),
        // Whatever went wrong may have left the mount in disorder.
        Err(error) => {
            mounts.remove(&case.setup);
            (Verdict::Failed(format!("{error:#}")), Vec::new())
        }
    };
    line(verdict, asserted, start)
}

fn on_mount(backend: &dyn Backend, case: &Case, seed: u64, mounts: &mut HashMap<Setup, ScratchMount>) -> Result<BTreeSet<Fact>> {
    let mut scratch = match mounts.remove(&case.setup) {
        Some(shared) => shared,
        None => mounted(backend, case.setup)?,
    };
    let books = Books::of(&scratch)?;
    let directory = scratch.join(case.name);
    fs::create_dir(&directory).with_context(|| directory.display().to_string())?;
    let mut scene = Scene::new(backend, &mut scratch, directory.clone(), seed);
    let outcome = catch_unwind(AssertUnwindSafe(|| (case.run)(&mut scene)));
    let asserted = scene.into_evidence();
    outcome.map_err(|_| anyhow!("the case itself panicked"))??;
    proven(case, &asserted)?;
    if !case.setup.private {
        books.expect_balance(&scratch)?;
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

/// A case that did not see what it is there for proves nothing, whatever else it asserted.
fn proven(case: &Case, asserted: &BTreeSet<Fact>) -> Result<()> {
    ensure!(!asserted.is_empty(), "the case asserts no path and no reason");
    if let Some(fact) = case.proves {
        ensure!(asserted.contains(&fact), "the case passes without having seen `{fact}`, only {asserted:?}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use peerfs_abi::{Path, Reason, Trigger};

    use super::*;

    #[test]
    fn other_evidence_than_the_reason_or_trigger_is_none() {
        let case = Case::new("a", "b", Setup::USUAL, |_| Ok(()));
        let seen = BTreeSet::from([Fact::Went(Path::Fallback), Fact::Refused(Reason::Hole), Fact::Revoked(Trigger::Punch)]);
        assert!(proven(&case, &BTreeSet::new()).is_err() && proven(&case, &seen).is_ok());
        assert!(proven(&case.refusing(Reason::Hole), &seen).is_ok());
        assert!(proven(&case.refusing(Reason::Busy), &seen).is_err());
        assert!(proven(&case.revoking(Trigger::Punch), &seen).is_ok());
        assert!(proven(&case.revoking(Trigger::Truncate), &seen).is_err());
    }
}
