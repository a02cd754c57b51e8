//! One mount with its actors, from quiet to quiet.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use peerfs_client::{ImporterSpec, MapFlags, Session};
use peerfs_sys::{FileView, Sharing};
use tempfile::NamedTempFile;

use super::ROUND;
use super::actor::{clear, notes_path, values_of};
use super::checker::{Values, check};
use super::cpu::read_up_to;
use super::note::{collect, now};
use super::plan::{FILE_BYTES, FILES, Span, file_path, tail};
use crate::torture::worker::{Nursery, Worker};
use crate::{Random, ScratchMount, words};

/// The processes, and the actors of each.
const CAST: [&[&str]; 6] = [
    &["buffered", "unbuffered", "toggled"],
    &["view-reader", "view-writer", "buffered"],
    &["device-reader", "device-faulting"],
    &["device-writer", "device-reader"],
    &["device-writer", "view-writer"],
    &["change"],
];

/// What all rounds did together.
#[derive(Debug, Default)]
pub(super) struct Totals {
    rounds: u64,
    checked: u64,
    direct: u64,
    fallback: u64,
    revocations: u64,
    enforced: u64,
    done: BTreeMap<String, u64>,
}

impl Totals {
    /// Part of the devices' bytes that went directly.
    pub(super) fn direct_share(&self) -> f64 {
        self.direct as f64 / (self.direct + self.fallback).max(1) as f64
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} rounds of {ROUND:?}; every one of {} values read is explained", self.rounds, self.checked)?;
        writeln!(f, "revocations {}, {} of them enforced", self.revocations, self.enforced)?;
        for (what, count) in &self.done {
            writeln!(f, "  {count:>9} {what}")?;
        }
        write!(f, "direct share {:.1} % of {} bytes moved by devices", self.direct_share() * 100.0, self.direct + self.fallback)
    }
}

/// A mount and the processes on it. Workers end before the mount does.
pub(super) struct Episode {
    workers: Vec<Worker>,
    actors: u64,
    notes: PathBuf,
    identity: bool,
    /// What the server says; shown when a round fails.
    log: NamedTempFile,
    mount: ScratchMount,
}

impl Episode {
    /// A fresh mount, made as `random` says, with prepared files and waiting processes.
    pub(super) fn new(random: &mut Random) -> Result<Episode> {
        // Where a window is the home of its blocks, and where it is a copy.
        let identity = random.one_in(4);
        let options = options(random, identity);
        println!("{} mounted with {}", if identity { "mem:" } else { "image:" }, options.join(" "));
        let log = NamedTempFile::new()?;
        let mut arguments: Vec<&str> = options.iter().map(String::as_str).collect();
        arguments.extend(["--log", log.path().to_str().context("a path in UTF-8")?]);
        let mount = match identity {
            true => ScratchMount::in_memory("96M", &arguments)?,
            false => ScratchMount::new("96M", &arguments)?,
        };
        for file in 0..FILES {
            fs::write(file_path(&mount.path(), file), whole().filled(1 + file as u64))?;
        }
        let notes = mount.directory().join("notes");
        clear(&notes)?;
        let nursery = Nursery::new(&mount)?;
        let mut episode = Episode { workers: Vec::new(), actors: 0, notes, identity, log, mount };
        for parts in CAST {
            let first = episode.actors + 1;
            let mut arguments =
                words!["coherence", &episode.mount.path(), &episode.notes, random.bits().to_string(), first.to_string()].to_vec();
            arguments.extend(parts.iter().map(std::ffi::OsString::from));
            // As root: revocation by hand is for administrators.
            episode.workers.push(nursery.start(0, &arguments)?);
            episode.actors += parts.len() as u64;
        }
        episode.workers.iter().try_for_each(|worker| worker.expect("ready").map(drop))?;
        Ok(episode)
    }

    /// Plays so many rounds, then unmounts and checks the volume.
    pub(super) fn play(mut self, rounds: u64, totals: &mut Totals) -> Result<()> {
        let mut before = vec![whole().cells().map(|_| 0).collect(); FILES];
        for (file, values) in before.iter_mut().enumerate() {
            let values: &mut Vec<u64> = values;
            values.fill(1 + file as u64);
        }
        for number in 0..rounds {
            let outcome = self.round(&before, totals);
            let said = || fs::read_to_string(self.log.path()).unwrap_or_default();
            before = outcome.with_context(|| format!("round {number}; the server said:\n{}", said()))?;
        }
        let info = peerfs_client::File::open(file_path(&self.mount.path(), 0))?.info()?;
        totals.revocations += info.revocations;
        totals.enforced += info.revocations_enforced;
        self.workers.clear();
        self.mount.umount()?;
        // A volume in memory ends with its mount.
        if self.identity { Ok(()) } else { self.mount.fsck() }
    }

    fn round(&mut self, before: &Values, totals: &mut Totals) -> Result<Values> {
        let end = now() + ROUND.as_nanos() as u64;
        self.workers.iter_mut().try_for_each(|worker| worker.tell(&format!("round {end}")))?;
        for worker in &self.workers {
            add_up(&worker.expect("done")?, totals)?;
        }
        let mut notes = Vec::new();
        for actor in 1..=self.actors {
            notes.extend(collect(&notes_path(&self.notes, actor), actor)?);
        }
        let (settled, settled_notes) = settle(&self.mount.path())?;
        notes.extend(settled_notes);
        match check(before, &notes) {
            Ok(checked) => totals.checked += checked,
            Err(history) => bail!("{history}"),
        }
        totals.rounds += 1;
        Ok(settled)
    }
}

fn options(random: &mut Random, identity: bool) -> Vec<String> {
    // Less than the files need, so that windows are evicted too.
    let cmb = *random.pick(&["12M", "32M"]);
    // An importer that is not scheduled for so long is cut, which raises SIGBUS where it accesses by address.
    let mut list = vec!["deadline_ms=5000".to_owned()];
    if random.one_in(4) {
        list.push("direct=respect-cache".to_owned());
    }
    if random.one_in(3) {
        list.push("grants=socket".to_owned());
    }
    let aperture = if identity { Vec::new() } else { vec!["--cmb".to_owned(), cmb.to_owned()] };
    [aperture, vec!["-o".to_owned(), list.join(",")]].concat()
}

fn whole() -> Span {
    tail(0)
}

fn add_up(line: &str, totals: &mut Totals) -> Result<()> {
    // What was done is named in words: `a b=1 c=2`.
    let (direct, rest) = line.split_once(' ').context("bytes moved directly")?;
    let (fallback, mut rest) = rest.split_once(' ').unwrap_or((rest, ""));
    totals.direct += direct.parse::<u64>()?;
    totals.fallback += fallback.parse::<u64>()?;
    while let Some((what, after)) = rest.split_once('=') {
        let (count, after) = after.split_once(' ').unwrap_or((after, ""));
        *totals.done.entry(what.to_owned()).or_default() += count.parse::<u64>()?;
        rest = after;
    }
    Ok(())
}

/// Nothing happens: what all ways of reading find must be the same.
fn settle(directory: &Path) -> Result<(Values, Vec<super::note::Note>)> {
    let session = Session::open(directory, ImporterSpec::cpu())?;
    let (mut values, mut notes) = (Vec::new(), Vec::new());
    for file in 0..FILES {
        let path = file_path(directory, file);
        let begin = now();
        // What is cached comes first: the others may drop pages, and with them the proof that they were old.
        let found = [
            ("a view", by_view(&path)?),
            ("read(2)", by_file(&File::open(&path)?)?),
            ("O_DIRECT", by_file(&OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&path)?)?),
            ("a device", by_device(&session, &path)?),
            ("a view again", by_view(&path)?),
        ];
        for (way, other) in &found[1..] {
            if let Some(cell) = (0..found[0].1.len()).find(|cell| other.get(*cell) != found[0].1.get(*cell)) {
                bail!(
                    "while nothing happens, cell {cell} of file {file} reads {:x?} by {way} and {:x?} by {}",
                    other.get(cell),
                    found[0].1.get(cell),
                    found[0].0
                );
            }
        }
        let [(_, first), ..] = found;
        ensure!(first.len() == whole().count, "file {file} ends early");
        let deed = super::note::Deed::Read(first.clone());
        notes.push(super::note::Note { actor: 0, way: super::note::Way::Settled, file, first: 0, begin, end: now(), deed });
        values.push(first);
    }
    Ok((values, notes))
}

fn by_file(file: &File) -> Result<Vec<u64>> {
    let mut bytes = vec![0; FILE_BYTES as usize];
    let count = read_up_to(file, 0, &mut bytes)?;
    Ok(values_of(whole(), &bytes[..count]))
}

fn by_view(path: &Path) -> Result<Vec<u64>> {
    let mut bytes = vec![0; FILE_BYTES as usize];
    let view = FileView::map(File::open(path)?, FILE_BYTES as usize, Sharing::Shared, false)?;
    view.read(0, &mut bytes).ok().context("the file ends before its view does")?;
    Ok(values_of(whole(), &bytes))
}

fn by_device(session: &Session, path: &Path) -> Result<Vec<u64>> {
    let mut bytes = vec![0; FILE_BYTES as usize];
    let mapping = session.map(&peerfs_client::File::open(path)?, .., MapFlags::empty())?;
    let moved = mapping.read_at(0, &mut bytes)?;
    Ok(values_of(whole(), &bytes[..moved.total() as usize]))
}
