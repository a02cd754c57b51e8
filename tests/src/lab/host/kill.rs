//! Power failures: a machine is killed while its programs write, and what they had synced must be on the medium.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use super::disks::Disks;
use super::oracle::Faults;
use super::qemu::{Guest, Heard, Machine};
use super::results::Results;
use super::{Lab, Request, boot};
use crate::lab::cases::kill::{WAYS, file, writer_seed};
use crate::lab::cases::{Case, Medium};
use crate::lab::channel::{Order, Report};
use crate::torture::crash::{self, Survivor};
use crate::{Random, ScratchMount};

/// From the order to the kill.
const WRITING: Duration = Duration::from_secs(120);
/// Synced versions over all writers after which the machine is killed at the earliest.
const LEAST_SYNCS: u64 = 12;

/// The cases, one after the other, each with media of its own.
///
/// # Errors
/// When there is no room for media.
pub fn cases(lab: &Lab, cases: &[&Case], request: &Request) -> Result<Results> {
    let mut results = Results::default();
    for case in cases {
        let disks = Disks::new(case.name, case.rig, request.keep)?;
        let mut survivors = Vec::new();
        for round in 0..request.kills.or(case.kills).unwrap_or(1) {
            let begun = Instant::now();
            let outcome = one_round(&lab.machine(&disks), case, request.seed, round, &mut survivors);
            let failed = outcome.is_err();
            results.note(case.name, round, begun.elapsed(), outcome.with_context(|| format!("round {round}")));
            if failed {
                break;
            }
        }
        if request.keep {
            println!("media and logs of {} are in {}", case.name, disks.file("").display());
        }
    }
    Ok(results)
}

/// A boot over what the one before left. Every round's files are looked at again after each later one.
fn one_round(machine: &Machine<'_>, case: &Case, seed: u64, round: usize, survivors: &mut Vec<Survivor>) -> Result<()> {
    let (mut guest, log) = boot::up(machine, &format!("round{round}"))?;
    guest.order(&Order { boot: round, cases: Vec::from([case.name.to_owned()]), seed, full: false })?;
    let synced = kill(guest, seed, round)?;
    survivors.extend(fates(seed, round, &synced)?);
    judge(machine.disks, case, survivors)?;
    Faults::of(machine.faults(&log)).judge(case.faults)
}

/// Answers the last synced version of each writer, as they were heard.
fn kill(guest: Guest, seed: u64, round: usize) -> Result<[u64; WAYS.len()]> {
    let mut random = Random::new(seed.wrapping_add(round as u64));
    let target = LEAST_SYNCS + random.below(40);
    let mut synced = [0; WAYS.len()];
    let deadline = Instant::now() + WRITING;
    // The second version of a mapping is the first that is mapped.
    while synced.iter().sum::<u64>() < target || synced.iter().any(|version| *version < 2) {
        match guest.hear(deadline) {
            Heard::Said(report) => note(&report, &mut synced)?,
            Heard::Gone => bail!("the guest ended before it was killed"),
            Heard::Silent => bail!("only {synced:?} versions were synced in {WRITING:?}"),
        }
    }
    std::thread::sleep(Duration::from_micros(random.below(50_000)));
    for report in guest.kill() {
        note(&report, &mut synced)?;
    }
    println!("  round {round}: killed after {target} syncs; synced of each writer: {synced:?}");
    Ok(synced)
}

fn note(report: &Report, synced: &mut [u64; WAYS.len()]) -> Result<()> {
    match report {
        Report::Synced { writer, version } => {
            *synced.get_mut(*writer).with_context(|| format!("there is no writer {writer}"))? = *version;
            Ok(())
        }
        Report::End { failure, .. } => Err(anyhow!("{}", failure.as_deref().unwrap_or("the case ended"))),
        _ => Ok(()),
    }
}

fn fates(seed: u64, round: usize, synced: &[u64]) -> Result<Vec<Survivor>> {
    let fate = |(writer, synced): (usize, &u64)| {
        let way = crash::WAYS.iter().find(|(_, name)| *name == WAYS[writer]).context("no such way")?.0;
        Ok(Survivor { way, path: file(round, writer), seed: writer_seed(seed, round, writer), synced: *synced })
    };
    synced.iter().enumerate().map(fate).collect()
}

/// Looks at a copy: the next round goes on with what the machine left, not with what we mended.
fn judge(disks: &Disks, case: &Case, survivors: &[Survivor]) -> Result<()> {
    let medium = disks.of(case.leaves.context("a case that kills names its medium")?);
    let grain = if case.leaves == Some(Medium::Pmr) { crash::MAPPED_GRAIN } else { crash::SECTOR };
    let mut scratch = ScratchMount::new("64M", &[])?;
    scratch.umount()?;
    fs::copy(&medium, scratch.image())?;
    scratch.fsck().context("before a mount")?;
    scratch.mount(&[])?;
    for survivor in survivors {
        crash::check(&placed(survivor, &scratch.path()), grain)?;
    }
    scratch.umount()?;
    scratch.fsck().context("after a mount")
}

fn placed(survivor: &Survivor, point: &Path) -> Survivor {
    Survivor { path: point.join(&survivor.path), ..survivor.clone() }
}
