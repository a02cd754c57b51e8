//! Runs cases one after the other. Cases that want the same mount share it, each in a directory of its own; after each
//! nothing may be left of what it mapped. Where one volume can be mounted at a time, those that share a mount run in a row.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use peerfs_abi::Reason;

use crate::backend::{Backend, Capability};
use crate::case::{Case, Setup};
use crate::evidence::{Fact, Ungranted};
use crate::kit::ScratchMount;
use crate::kit::worker::NeedsRoot;
use crate::leftovers::Books;
use crate::report::{Line, Report, Verdict};
use crate::scene::Scene;

/// Why a case shows nothing on a mount that has less of an aperture than it was given.
const RAN_SHORT: &str = "too little memory may be locked for its windows (ulimit -l)";

/// Runs these cases on a backend; each line is shown as it comes.
pub fn run(backend: &dyn Backend, cases: &[Case], seed: u64, mut show: impl FnMut(&Line)) -> Report {
    let mut mounts = HashMap::new();
    let mut report = Report::default();
    let side_by_side = backend.has(Capability::SideBySide);
    for case in if side_by_side { cases.to_vec() } else { by_setup(cases) } {
        if !side_by_side {
            mounts.retain(|setup, _| *setup == case.setup);
        }
        let line = one(backend, &case, seed, &mut mounts);
        show(&line);
        report.lines.push(line);
    }
    report
}

/// Those with the same setup in a row, in the order of the first of each.
fn by_setup(cases: &[Case]) -> Vec<Case> {
    let mut rows: Vec<Vec<Case>> = Vec::new();
    for case in cases {
        match rows.iter_mut().find(|row| row[0].setup == case.setup) {
            Some(row) => row.push(*case),
            None => rows.push(vec![*case]),
        }
    }
    rows.concat()
}

fn one(backend: &dyn Backend, case: &Case, seed: u64, mounts: &mut HashMap<Setup, ScratchMount>) -> Line {
    let start = Instant::now();
    let line = |verdict, asserted, start: Instant| Line {
        case: case.name,
        rule: case.rule,
        backend: backend.name().to_owned(),
        verdict,
        asserted,
        took_ms: start.elapsed().as_millis() as u64,
    };
    if let Some(missing) = case.needs.iter().find(|need| !backend.has(**need)) {
        return line(Verdict::Skipped(missing.lack().to_owned()), Vec::new(), start);
    }
    let (verdict, asserted) = match on_mount(backend, case, seed, mounts) {
        Ok((verdict, asserted)) => (verdict, asserted.iter().map(Fact::to_string).collect()),
        // Whatever went wrong may have left the mount in disorder.
        Err(error) => {
            mounts.remove(&case.setup);
            (Verdict::Failed(format!("{error:#}")), Vec::new())
        }
    };
    line(verdict, asserted, start)
}

fn on_mount(
    backend: &dyn Backend,
    case: &Case,
    seed: u64,
    mounts: &mut HashMap<Setup, ScratchMount>,
) -> Result<(Verdict, BTreeSet<Fact>)> {
    let mut scratch = match mounts.remove(&case.setup) {
        Some(shared) => shared,
        None => mounted(backend, case.setup)?,
    };
    let books = Books::of(&scratch)?;
    let directory = scratch.join(case.name);
    fs::create_dir(&directory).with_context(|| directory.display().to_string())?;
    let mut scene = Scene::new(backend, &mut scratch, directory.clone(), case.setup, seed);
    let outcome = catch_unwind(AssertUnwindSafe(|| (case.run)(&mut scene)));
    let asserted = scene.into_evidence();
    let outcome = outcome.map_err(|_| anyhow!("the case itself panicked"))?;
    let verdict = match judged(case, outcome, &asserted) {
        Err(error) if ran_short(&scratch, &error) => Verdict::Skipped(RAN_SHORT.to_owned()),
        judged => judged?,
    };
    if verdict == Verdict::Skipped(RAN_SHORT.to_owned()) {
        return Ok((verdict, asserted));
    }
    if !case.setup.private {
        books.expect_balance(&scratch)?;
        fs::remove_dir_all(&directory)?;
        mounts.insert(case.setup, scratch);
    }
    Ok((verdict, asserted))
}

/// A window was refused that the mount was asked to have room for: this user may lock too little memory.
fn ran_short(scratch: &ScratchMount, error: &anyhow::Error) -> bool {
    let Ok(info) = scratch.info() else { return false };
    let limited = info["limits"].as_array().is_some_and(|limits| limits.iter().any(|limit| limit["name"] == "locked-memory"));
    let [full, quota] = [Reason::ApertureFull.name(), Reason::PinQuota.name()];
    let told = [full, quota].iter().any(|reason| info["refused"][reason].as_u64() > Some(0));
    limited && (told || format!("{error:#}").contains(full))
}

/// A case that ended for want of a window in a client counts if it has seen by then what it is there for.
fn judged(case: &Case, outcome: Result<()>, asserted: &BTreeSet<Fact>) -> Result<Verdict> {
    match outcome {
        Ok(()) => proven(case, asserted).map(|()| Verdict::Passed),
        Err(error) if error.is::<Ungranted>() => {
            ensure!(asserted.contains(&Fact::Refused(Reason::NoGrantObject)), "ended without NoGrantObject: {asserted:?}");
            let seen = case.proves.is_some_and(|fact| asserted.contains(&fact));
            Ok(if seen { Verdict::Passed } else { Verdict::Skipped(Capability::Grants.lack().to_owned()) })
        }
        Err(error) if error.is::<NeedsRoot>() => Ok(Verdict::Skipped(NeedsRoot.to_string())),
        Err(error) => Err(error),
    }
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
    use peerfs_abi::{Path, Trigger};

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

    #[test]
    fn a_case_that_ends_for_want_of_a_window_counts_only_with_what_it_is_there_for() {
        let case = Case::new("a", "b", Setup::USUAL, |_| Ok(())).refusing(Reason::Hole);
        let ended = || Err(anyhow::Error::from(Ungranted).context("on the way"));
        let refused = BTreeSet::from([Fact::Refused(Reason::NoGrantObject)]);
        let seen = BTreeSet::from([Fact::Refused(Reason::NoGrantObject), Fact::Refused(Reason::Hole)]);
        assert!(matches!(judged(&case, ended(), &refused), Ok(Verdict::Skipped(_))));
        assert_eq!(judged(&case, ended(), &seen).expect("no failure"), Verdict::Passed);
        assert!(judged(&case, ended(), &BTreeSet::new()).is_err());
        assert!(judged(&case, Err(anyhow!("another error")), &seen).is_err());
        let user = judged(&case, Err(anyhow::Error::from(NeedsRoot).context("a stranger")), &seen).expect("no failure");
        assert_eq!(user, Verdict::Skipped(NeedsRoot.to_string()));
    }

    #[test]
    fn cases_that_share_a_mount_come_in_a_row() {
        let case = |name, setup| Case::new(name, "rule", setup, |_| Ok(()));
        let cases = [case("a", Setup::USUAL), case("b", Setup::PATIENT), case("c", Setup::USUAL), case("d", Setup::PATIENT)];
        assert_eq!(by_setup(&cases).iter().map(|case| case.name).collect::<Vec<_>>(), ["a", "c", "b", "d"]);
    }
}
