//! One boot with cases that share it.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};

use super::disks::Disks;
use super::oracle::Faults;
use super::qemu::{Guest, Heard, Machine};
use super::results::Results;
use super::{Request, oracle};
use crate::lab::cases::Case;
use crate::lab::channel::{Order, Report};

/// From power-on to the runner's hello, on a loaded host.
const BOOT: Duration = Duration::from_secs(90);
/// For one case.
const CASE: Duration = Duration::from_secs(120);
/// For one case in full.
const FULL_CASE: Duration = Duration::from_secs(3600);
/// From the last case to power-off.
const END: Duration = Duration::from_secs(30);

/// A guest whose runner is up, and the name of its logs. A boot that fails is tried once more: emulated machines now and
/// then panic while they boot.
///
/// # Errors
/// When the second one fails too, with the end of its console.
pub fn up(machine: &Machine<'_>, name: &str) -> Result<(Guest, String)> {
    let mut console = String::new();
    for attempt in ["", "-again"] {
        let name = format!("{name}{attempt}");
        let guest = machine.start(&name)?;
        if matches!(guest.hear(Instant::now() + BOOT), Heard::Said(Report::Hello)) {
            return Ok((guest, name));
        }
        drop(guest);
        console = tail(&machine.console(&name));
        eprintln!("lab: the boot `{name}` failed");
    }
    bail!("the guest does not boot; its console ends with:\n{console}")
}

/// All boots of cases that share machines, over the same media. A machine that does not boot fails its cases.
pub fn all(machine: &Machine<'_>, cases: &[&Case], request: &Request) -> Results {
    let mut results = Results::default();
    for number in 0..2 {
        let sharing: Vec<&Case> = cases.iter().copied().filter(|case| case.step(number).is_some()).collect();
        if sharing.is_empty() {
            continue;
        }
        if let Err(error) = one(machine, number, &sharing, request, &mut results) {
            for case in sharing {
                results.judge(case.name, Err(anyhow!("boot {number}: {error:#}")));
            }
        }
    }
    results
}

/// Boots once, runs the cases that share the boot, and checks what they leave.
///
/// # Errors
/// When the machine does not boot.
fn one(machine: &Machine<'_>, number: usize, cases: &[&Case], request: &Request, results: &mut Results) -> Result<()> {
    let Request { seed, full, .. } = *request;
    let (mut guest, log) = up(machine, &format!("boot{number}"))?;
    guest.order(&Order { boot: number, cases: cases.iter().map(|case| case.name.to_owned()).collect(), seed, full })?;
    let mut lost = None;
    let mut faults = Faults::of(machine.faults(&log));
    for case in cases {
        let begun = Instant::now();
        let heard = match lost {
            None => hear_of(&guest, machine.disks, if full { FULL_CASE } else { CASE }),
            Some(name) => Err(anyhow!("not run: the machine was lost in `{name}`")),
        };
        let outcome = match heard {
            Ok(outcome) => outcome,
            Err(error) => {
                lost = lost.or(Some(case.name));
                Err(error.context(format!("the console ends with:\n{}", tail(&machine.console(&log)))))
            }
        };
        results.note(case.name, number, begun.elapsed(), outcome);
        results.judge(case.name, faults.judge(case.faults));
    }
    if lost.is_none() {
        guest.finish(Instant::now() + END)?;
    } else {
        drop(guest);
    }
    for case in cases {
        results.judge(case.name, case.leaves.map_or(Ok(()), |medium| oracle::clean(machine.disks, medium)));
    }
    Ok(())
}

/// What came of the case that is under way; the outer error means that the machine is lost.
fn hear_of(guest: &Guest, disks: &Disks, patience: Duration) -> Result<Result<()>> {
    let deadline = Instant::now() + patience;
    let mut seen = Ok(());
    loop {
        match guest.hear(deadline) {
            Heard::Said(Report::End { failure: None, .. }) => return Ok(seen),
            Heard::Said(Report::Holds { namespace, offset, length, seed }) => {
                seen = seen.and(oracle::holds(disks, namespace, offset, length, seed));
            }
            Heard::Said(Report::Note { text }) => println!("  {text}"),
            Heard::Said(Report::Unplug { namespace }) => seen = seen.and(guest.unplug(namespace)),
            Heard::Said(Report::End { failure: Some(failure), .. }) => return Ok(Err(anyhow!(failure))),
            Heard::Said(_) => {}
            Heard::Gone => bail!("the guest ended"),
            Heard::Silent => bail!("the case has not ended after {patience:?}"),
        }
    }
}

/// The last lines of a console.
fn tail(console: &Path) -> String {
    let text = fs::read(console).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(25)..].join("\n")
}
