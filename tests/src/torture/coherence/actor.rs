//! The programs that take part: each process runs a few actors, each actor a thread per round.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use peerfs_client::{Attestation, Session};

use super::note::{NEVER, Notebook, Way, now};
use super::plan::{FILES, Span, file_path};
use super::{change, cpu, device};
use crate::Random;
use crate::torture::worker::{die_with_parent, hear, say};

/// What an actor does, all the time.
pub(super) type Part = fn(&mut Actor) -> Result<()>;

/// Kinds of actors by name.
const PARTS: [(&str, Part); 9] = [
    ("buffered", cpu::buffered),
    ("unbuffered", cpu::unbuffered),
    ("toggled", cpu::toggled),
    ("view-reader", cpu::view_reader),
    ("view-writer", cpu::view_writer),
    ("device-reader", device::reader),
    ("device-writer", device::writer),
    ("device-faulting", device::faulting),
    ("change", change::change),
];

/// One actor, and what it keeps between rounds.
pub(super) struct Actor {
    pub(super) random: Random,
    pub(super) directory: PathBuf,
    pub(super) notes: Notebook,
    pub(super) session: Option<Session>,
    /// Bytes that went directly and by fallback.
    pub(super) moved: Attestation,
    /// Operations of each kind.
    pub(super) done: BTreeMap<&'static str, u64>,
    sequence: u64,
    /// The round's end, on the clock of the notes.
    end: u64,
}

impl Actor {
    fn new(number: u64, seed: u64, directory: &Path) -> Actor {
        Actor {
            random: Random::new(seed ^ number << 32),
            directory: directory.to_owned(),
            notes: Notebook::new(number),
            session: None,
            moved: Attestation::default(),
            done: BTreeMap::new(),
            sequence: 0,
            end: 0,
        }
    }

    /// Is it time to rest?
    pub(super) fn over(&self) -> bool {
        self.notes.is_full() || now() >= self.end
    }

    /// A value that nobody else writes.
    pub(super) fn value(&mut self) -> u64 {
        self.sequence += 1;
        self.notes.actor << 40 | self.sequence
    }

    /// Some file: its number and path.
    pub(super) fn file(&mut self) -> (usize, PathBuf) {
        let file = self.random.below(FILES as u64) as usize;
        (file, file_path(&self.directory, file))
    }

    /// Pace, not synchronisation: without pauses nothing would ever stay mapped.
    pub(super) fn rest(&mut self, most_us: u64) {
        if self.random.one_in(3) {
            thread::sleep(Duration::from_micros(self.random.below(most_us)));
        }
    }

    pub(super) fn count(&mut self, what: &'static str) {
        *self.done.entry(what).or_default() += 1;
    }

    /// Writes a fresh value into a span with `work` and notes it; `work` answers whether it surely took effect.
    pub(super) fn write(
        &mut self,
        way: Way,
        file: usize,
        span: Span,
        work: impl FnOnce(&mut Actor, &[u8]) -> Result<bool>,
    ) -> Result<()> {
        let value = self.value();
        let bytes = span.filled(value);
        let begin = now();
        let sure = work(self, &bytes)?;
        let end = if sure { now() } else { NEVER };
        self.notes.wrote(way, file, span, value, begin, end);
        Ok(())
    }

    /// Reads a span with `work`, which answers how many bytes there were, and notes the values of its cells.
    pub(super) fn read(
        &mut self,
        way: Way,
        file: usize,
        span: Span,
        work: impl FnOnce(&mut Actor, &mut [u8]) -> Result<usize>,
    ) -> Result<()> {
        let mut bytes = vec![0; span.length as usize];
        let begin = now();
        let count = work(self, &mut bytes)?;
        let end = now();
        let values = values_of(span, &bytes[..count]);
        self.notes.read(way, file, span.first, begin, end, &values);
        Ok(())
    }
}

/// The values of a span's cells among bytes that may end early.
pub(super) fn values_of(span: Span, bytes: &[u8]) -> Vec<u64> {
    let words = span.cells().map_while(|(_, at)| bytes.get(at as usize..at as usize + 8));
    words.map(|word| u64::from_le_bytes(word.try_into().unwrap_or_default())).collect()
}

/// The path of an actor's notes.
pub(super) fn notes_path(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("notes-{number}"))
}

/// The child: `parts` are the actors, numbered from `first` on. It obeys `round END`, and answers `done` with bytes
/// direct and by fallback, and counts of what was done.
///
/// # Errors
/// When a call fails that may not.
pub fn work(directory: &Path, notes: &Path, seed: u64, first: u64, parts: &[String]) -> Result<()> {
    die_with_parent()?;
    let find = |name: &String| PARTS.iter().find(|(known, _)| known == name).map(|(_, part)| *part).context("no such part");
    let parts: Vec<Part> = parts.iter().map(find).collect::<Result<_>>()?;
    let mut actors: Vec<Actor> = (0..parts.len() as u64).map(|at| Actor::new(first + at, seed, directory)).collect();
    say("ready")?;
    loop {
        let line = hear()?;
        let Some(end) = line.strip_prefix("round ") else { bail!("`{line}` is no command") };
        let end = end.parse()?;
        round(&mut actors, &parts, end)?;
        let (mut moved, mut done) = (Attestation::default(), BTreeMap::new());
        for actor in &mut actors {
            actor.notes.save(&notes_path(notes, actor.notes.actor))?;
            moved += std::mem::take(&mut actor.moved);
            std::mem::take(&mut actor.done).into_iter().for_each(|(what, count)| *done.entry(what).or_default() += count);
        }
        let counts: Vec<String> = done.iter().map(|(what, count): (&&str, &u64)| format!("{what}={count}")).collect();
        say(format!("done {} {} {}", moved.direct(), moved.fallback, counts.join(" ")))?;
    }
}

fn round(actors: &mut [Actor], parts: &[Part], end: u64) -> Result<()> {
    let failure = Mutex::new(None);
    thread::scope(|scope| {
        for (actor, part) in actors.iter_mut().zip(parts) {
            let failure = &failure;
            scope.spawn(move || {
                actor.end = end;
                while !actor.over() {
                    if let Err(error) = part(actor) {
                        let error = error.context(format!("actor {}", actor.notes.actor));
                        *failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(error);
                        return;
                    }
                }
            });
        }
    });
    let failure = failure.into_inner().map_err(|_| anyhow!("an actor panicked"))?;
    failure.map_or(Ok(()), Err)
}

/// Removes a directory's notes, whatever is left of them.
pub(super) fn clear(directory: &Path) -> Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory)?;
    }
    Ok(fs::create_dir(directory)?)
}
