//! On the host: boots machines, hears of their cases, checks the media, and prints what came of it.

mod boot;
mod command;
mod disks;
mod initramfs;
mod kernel;
mod kill;
mod modules;
mod oracle;
mod qemu;
mod results;

use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};
use peerfs_conformance::kit::{remove_on_signal, tidy_on_signal};
use tempfile::TempDir;

use self::disks::Disks;
use self::kernel::Kernel;
use self::qemu::Machine;
use self::results::Results;
use super::cases::{CASES, Case, Rig};

/// What is asked for.
pub struct Request {
    /// The cases; all if empty.
    pub names: Vec<String>,
    /// What contents and moments are derived from.
    pub seed: u64,
    /// How often a machine is killed in each case of that kind; the case's own number if none is given.
    pub kills: Option<usize>,
    /// Cases that have a short form run in full.
    pub full: bool,
    /// Media and logs are left behind.
    pub keep: bool,
}

/// What every machine is made from.
struct Lab {
    kernel: Kernel,
    initramfs: PathBuf,
    _work: TempDir,
}

impl Lab {
    fn build() -> Result<Lab> {
        let work = tempfile::Builder::new().prefix("peerfs-lab-root-").tempdir()?;
        remove_on_signal(work.path());
        let kernel = kernel::obtain()?;
        let initramfs = initramfs::build(work.path(), &kernel)?;
        Ok(Lab { kernel, initramfs, _work: work })
    }

    fn machine<'a>(&'a self, disks: &'a Disks) -> Machine<'a> {
        Machine { kernel: &self.kernel, initramfs: &self.initramfs, disks }
    }
}

/// Runs what is asked for and answers whether all of it passed.
///
/// # Errors
/// When the lab itself does not work: a program or the kernel is missing.
pub fn run(request: &Request) -> Result<bool> {
    tidy_on_signal()?;
    let cases = chosen(&request.names)?;
    println!("seed {} (replay with --seed {})", request.seed, request.seed);
    let lab = Lab::build()?;
    let (killed, sharing): (Vec<&'static Case>, Vec<&'static Case>) = cases.iter().partition(|case| case.kills.is_some());
    // Side by side: an emulated machine uses one processor of the host.
    let results = std::thread::scope(|scope| {
        let beside = scope.spawn(|| {
            let killed = kill::cases(&lab, &killed, request)?;
            Ok::<_, anyhow::Error>(killed.and(sharing_boots(&lab, Rig::Ports, &sharing, request)?))
        });
        let results = sharing_boots(&lab, Rig::Pair, &sharing, request)?;
        let beside = beside.join().map_err(|_| anyhow!("the thread of the machines beside panicked"))??;
        Ok::<_, anyhow::Error>(results.and(beside))
    })?;
    Ok(results.print())
}

/// The cases for one kind of machine.
fn sharing_boots(lab: &Lab, rig: Rig, cases: &[&'static Case], request: &Request) -> Result<Results> {
    let cases: Vec<&Case> = cases.iter().copied().filter(|case| case.rig == rig).collect();
    if cases.is_empty() {
        return Ok(Results::default());
    }
    let disks = Disks::new("cases", rig, request.keep)?;
    let results = boot::all(&lab.machine(&disks), &cases, request);
    if request.keep {
        println!("media and logs are in {}", disks.file("").display());
    }
    Ok(results)
}

/// A shell in a machine with empty media.
///
/// # Errors
/// As [`run`].
pub fn converse() -> Result<()> {
    tidy_on_signal()?;
    let lab = Lab::build()?;
    let disks = Disks::new("console", Rig::Pair, false)?;
    lab.machine(&disks).converse()
}

/// Prints the cases.
pub fn list() {
    for case in CASES {
        println!("{:<20} {}", case.name, case.shows);
    }
}

fn chosen(names: &[String]) -> Result<Vec<&'static Case>> {
    for name in names {
        super::cases::named(name).with_context(|| "--case")?;
    }
    let wanted = |case: &&Case| names.is_empty() || names.iter().any(|name| name == case.name);
    Ok(CASES.iter().filter(wanted).collect())
}
