//! kill -9 of the server while programs write and hold mappings: what was synced is there,
//! the volume is clean, and nobody can read a byte through an old window.

mod plan;
mod writer;

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::signal::Signal;

pub use plan::{MAPPED_GRAIN, SECTOR};
pub use writer::{Pace, WAYS, Way, write};

use self::plan::Expectation;
use self::writer::{KEPT, created, created_content};
use super::worker::{NOBODY, Nursery, PATIENCE, Worker, shared_file};
use crate::{Media, Random, ScratchMount, words};

/// Synced versions, over all writers, after which the server is killed at the earliest.
const LEAST_SYNCS: u64 = 30;

/// A file after a crash.
#[derive(Clone)]
pub struct Survivor {
    /// How it was written.
    pub way: Way,
    /// Where it is.
    pub path: PathBuf,
    /// What its versions are derived from.
    pub seed: u64,
    /// The last version that the writer said was synced.
    pub synced: u64,
}

/// Rounds of writing and killing on one volume.
///
/// # Errors
/// When something synced is lost, or an old window can be read.
pub fn rounds(media: Media, seed: u64, rounds: u64, options: &[&str]) -> Result<()> {
    let grain = if media == Media::Mapped { MAPPED_GRAIN } else { SECTOR };
    let mut scratch = ScratchMount::on(media, "1G", options)?;
    let nursery = Nursery::new(&scratch)?;
    let mut survivors = Vec::new();
    for round in 0..rounds {
        let seed = seed.wrapping_add(round);
        let context = || format!("round {round} (seed {seed})");
        survivors.extend(one_round(&mut scratch, &nursery, seed, round, options).with_context(context)?);
        survivors.iter().try_for_each(|survivor| check(survivor, grain)).with_context(context)?;
    }
    scratch.umount()?;
    scratch.fsck()
}

fn one_round(scratch: &mut ScratchMount, nursery: &Nursery, seed: u64, round: u64, options: &[&str]) -> Result<Vec<Survivor>> {
    let mut random = Random::new(seed);
    let directory = scratch.join(&format!("round-{round}"));
    fs::create_dir(&directory)?;
    let mut holders = Holders::start(nursery, &directory, &mut random)?;
    let mut survivors = Vec::new();
    let mut writers = Vec::new();
    let (sender, said) = channel();
    for (number, (way, name)) in WAYS.into_iter().enumerate() {
        let survivor = Survivor { way, path: directory.join(name), seed: random.bits(), synced: 0 };
        let arguments = words!["write", name, &survivor.path, survivor.seed.to_string()];
        writers.push(nursery.start_tagged(0, &arguments, number, sender.clone())?);
        survivors.push(survivor);
    }
    drop(sender);
    let mut tally = Tally { survivors, direct: 0, total: 0 };
    let target = LEAST_SYNCS + random.below(200);
    tally.listen(&said, Some(target))?;
    for (writer, (_, name)) in writers.iter().zip(WAYS) {
        ensure!(!writer.has_ended()?, "the writer `{name}` ended before the server was killed");
    }
    scratch.crash()?;
    tally.listen(&said, None)?;
    for mut writer in writers {
        let status = writer.wait()?;
        ensure!(status.success(), "a writer ended with {status}");
    }
    scratch.fsck()?;
    scratch.mount(options)?;
    holders.check()?;
    println!("killed after {target} syncs; {} of {} device-mapped bytes went directly", tally.direct, tally.total);
    ensure!(tally.total == 0 || tally.direct > 0, "no byte of the device mapping went directly");
    Ok(tally.survivors)
}

/// What the writers have said.
struct Tally {
    survivors: Vec<Survivor>,
    direct: u64,
    total: u64,
}

impl Tally {
    /// Until every writer has synced something and `target` syncs are reached, or until all writers have ended.
    fn listen(&mut self, said: &Receiver<(usize, String)>, target: Option<u64>) -> Result<()> {
        loop {
            let syncs: u64 = self.survivors.iter().map(|survivor| survivor.synced).sum();
            // The second version of a device mapping is the first that is mapped.
            let all_began = self.survivors.iter().all(|survivor| survivor.synced >= 2);
            if target.is_some_and(|target| syncs >= target && all_began) {
                return Ok(());
            }
            match said.recv_timeout(PATIENCE) {
                Ok((number, line)) => self.note(number, &line)?,
                Err(RecvTimeoutError::Disconnected) if target.is_none() => return Ok(()),
                Err(error) => bail!("the writers: {error}"),
            }
        }
    }

    fn note(&mut self, number: usize, line: &str) -> Result<()> {
        let mut numbers = line.split(' ').map(str::parse::<u64>);
        let mut next = || numbers.next().context("a number is missing")?.context("not a number");
        let survivor = &mut self.survivors[number];
        survivor.synced = next()?;
        if survivor.way == Way::Device {
            (self.direct, self.total) = (next()?, next()?);
        }
        Ok(())
    }
}

/// Programs with live mappings.
struct Holders {
    library: Worker,
    by_address: Worker,
    by_hand: Worker,
}

impl Holders {
    fn start(nursery: &Nursery, directory: &Path, random: &mut Random) -> Result<Holders> {
        let path = directory.join("held");
        let mut content = vec![0; 3 << 20];
        random.fill(&mut content);
        shared_file(&path, &content)?;
        let holders = Holders {
            library: nursery.start(NOBODY, &words!["hold-library", &path])?,
            by_address: nursery.start(NOBODY, &words!["hold-by-address", &path])?,
            by_hand: nursery.start(NOBODY, &words!["hold-by-hand", &path])?,
        };
        for holder in [&holders.library, &holders.by_address, &holders.by_hand] {
            holder.expect("ready")?;
        }
        Ok(holders)
    }

    /// After the volume is mounted anew, nothing of what they held is left.
    fn check(&mut self) -> Result<()> {
        self.by_hand.tell("probe")?;
        ensure!(self.by_hand.expect("readable")? == "0", "pages of an old window can be read beside a new server");
        let status = self.by_address.wait()?;
        ensure!(status.signal() == Some(Signal::SIGBUS as i32), "the holder by address ended with {status} instead of SIGBUS");
        let last = self.library.rest()?.pop();
        ensure!(last.as_deref() == Some("server-gone"), "the library said {last:?} instead of server-gone");
        Ok(())
    }
}

/// Everything synced is there. `grain`: what the medium writes whole ([`SECTOR`], or [`MAPPED_GRAIN`]).
///
/// # Errors
/// Says what is missing, or is neither old nor new.
pub fn check(survivor: &Survivor, grain: usize) -> Result<()> {
    let Survivor { way, path, seed, synced } = survivor;
    let context = || format!("{} after {synced} synced versions", path.display());
    match way {
        Way::Create => check_created(path, *seed, *synced),
        Way::Rename => check_renamed(path, *seed, *synced),
        _ => {
            let expectation = Expectation::after(*seed, way.whole_first(), *synced);
            fs::read(path)
                .map_err(anyhow::Error::from)
                .and_then(|content| expectation.judge(&content, grain).map_err(|wrong| anyhow!(wrong)))
        }
    }
    .with_context(context)
}

/// The version after the last synced one may have removed one more.
fn check_created(path: &Path, seed: u64, synced: u64) -> Result<()> {
    for version in (synced + 2).saturating_sub(KEPT).max(1)..=synced {
        let content = fs::read(created(path, version)).with_context(|| format!("version {version}"))?;
        ensure!(content == created_content(seed, version), "version {version} has other bytes");
    }
    Ok(())
}

fn check_renamed(path: &Path, seed: u64, synced: u64) -> Result<()> {
    let content = fs::read(path)?;
    let known = [synced, synced + 1].into_iter().any(|version| content == created_content(seed, version));
    ensure!(known, "it is neither the last synced version nor the one after");
    Ok(())
}
