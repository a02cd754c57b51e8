//! What is done to the files: filling until there is no room, then making room, again and again.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statvfs::statvfs;
use peerfs_client::{ImporterSpec, MapFlags, Mapping, Session};

use super::content::{HOLE, SECTOR, Stamp, bytes_of, stamps_of};
use super::model::Model;
use crate::Random;

/// Sizes of single writes, in sectors: 4 KiB, 64 KiB, 1 MiB.
const CHUNKS: [usize; 3] = [8, 128, 2048];
/// A new file has up to 2 to the power of this many sectors (4 MiB).
const SIZE_POWER: u64 = 13;
/// Mappings held at one time.
const MOST_HELD: usize = 8;

/// How an operation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is done.
    Done,
    /// ENOSPC, and nothing beyond what was acknowledged is done.
    Full,
    /// The server was killed meanwhile.
    Gone,
}

/// What is being aimed at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Filling,
    /// Until this part of the volume is free, in percent.
    Thinning(u64),
}

/// Counts of what was done.
#[derive(Debug, Default, Clone, Copy)]
pub struct Tally {
    /// Operations.
    pub operations: u64,
    /// Bytes written.
    pub written: u64,
    /// Times that there was no room.
    pub full: u64,
    /// Bytes read or written through device mappings directly.
    pub direct: u64,
    /// All bytes read or written through device mappings.
    pub mapped: u64,
}

/// The one who works on a mount.
pub struct Work {
    directory: PathBuf,
    random: Random,
    /// What the files are to be.
    pub model: Model,
    /// Set before the server is killed.
    pub killed: Arc<AtomicBool>,
    /// What was done.
    pub tally: Tally,
    phase: Phase,
    serial: Stamp,
    session: Option<Session>,
    held: Vec<Mapping>,
    /// Files may share blocks.
    pub shared: bool,
}

impl Work {
    /// On a mount of an empty volume.
    pub fn new(directory: PathBuf, random: Random) -> Work {
        Work {
            directory,
            random,
            model: Model::default(),
            killed: Arc::default(),
            tally: Tally::default(),
            phase: Phase::Filling,
            serial: HOLE,
            session: None,
            held: Vec::new(),
            shared: false,
        }
    }

    /// Gives back all mappings.
    pub fn rest(&mut self) {
        for mapping in std::mem::take(&mut self.held) {
            self.count_mapped(&mapping);
        }
        self.session = None;
    }

    /// One operation.
    ///
    /// # Errors
    /// A call failed that must not, or what was read is wrong.
    pub fn step(&mut self) -> Result<Outcome> {
        self.tally.operations += 1;
        if let Phase::Thinning(percent) = self.phase {
            let space = statvfs(&self.directory).map_err(io::Error::from);
            if space.is_ok_and(|space| space.blocks_available() * 100 >= space.blocks() * percent) {
                self.phase = Phase::Filling;
            }
        }
        let dice = self.random.below(100);
        let outcome = match self.phase {
            Phase::Filling => self.fill(dice)?,
            Phase::Thinning(_) => self.thin(dice)?,
        };
        if outcome == Outcome::Full {
            self.tally.full += 1;
            self.phase = Phase::Thinning(10 + self.random.below(60));
        }
        Ok(outcome)
    }

    fn fill(&mut self, dice: u64) -> Result<Outcome> {
        let Some(name) = self.any() else { return self.create() };
        match dice {
            0..25 => self.create(),
            25..55 => self.append(&name),
            55..70 => self.overwrite(&name),
            70..74 => self.resize(&name),
            74..78 => self.punch(&name),
            78..81 => self.preallocate(&name),
            81..85 => self.rename(&name),
            85 => self.reflink(&name),
            86..90 => self.map(&name, false),
            90..93 => self.map(&name, true),
            93..96 => self.remove(&name),
            _ => self.sync(&name),
        }
    }

    fn thin(&mut self, dice: u64) -> Result<Outcome> {
        let Some(name) = self.any() else { return self.create() };
        match dice {
            0..55 => self.remove(&name),
            55..70 => self.cut(&name),
            70..90 => self.punch(&name),
            90..95 => self.rename(&name),
            _ => self.sync(&name),
        }
    }

    fn any(&mut self) -> Option<String> {
        let number = self.random.bits();
        self.model.name(number)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn new_name(&mut self) -> String {
        self.serial += 1;
        format!("f{:08}", self.serial)
    }

    fn stamps(&mut self, count: usize) -> Vec<Stamp> {
        let first = self.serial + 1;
        self.serial += count as Stamp;
        (first..=self.serial).collect()
    }

    /// Mostly small, sometimes large.
    fn size(&mut self) -> usize {
        let most = 1 << self.random.below(SIZE_POWER + 1);
        1 + self.random.below(most) as usize
    }

    fn outcome(&self, result: Result<()>) -> Result<Outcome> {
        match result {
            Ok(()) => Ok(Outcome::Done),
            Err(_) if self.killed.load(Ordering::Acquire) => Ok(Outcome::Gone),
            Err(error) if is_full(&error) => Ok(Outcome::Full),
            Err(error) => Err(error),
        }
    }

    fn create(&mut self) -> Result<Outcome> {
        let (name, sectors) = (self.new_name(), self.size());
        self.model.create(&name);
        let made = File::create_new(self.path(&name)).map(drop).with_context(|| format!("create {name}"));
        match self.outcome(made)? {
            Outcome::Done => self.write(&name, 0, sectors),
            Outcome::Full => {
                self.model.remove(&name);
                Ok(Outcome::Full)
            }
            Outcome::Gone => Ok(Outcome::Gone),
        }
    }

    fn append(&mut self, name: &str) -> Result<Outcome> {
        let (end, sectors) = (self.model.file(name)?.sectors().len(), self.size().min(2048));
        self.write(name, end, sectors)
    }

    fn overwrite(&mut self, name: &str) -> Result<Outcome> {
        let length = self.model.file(name)?.sectors().len() as u64;
        let (at, sectors) = (self.random.below(length + 1) as usize, self.size().min(512));
        self.write(name, at, sectors)
    }

    fn write(&mut self, name: &str, at: usize, sectors: usize) -> Result<Outcome> {
        let chunk = *self.random.pick(&CHUNKS) * SECTOR;
        let stamps = self.stamps(sectors);
        let old = self.model.file(name)?.sectors().to_vec();
        self.model.file_mut(name)?.set(at, &stamps);
        let (done, result) = write_in_chunks(&self.path(name), (at * SECTOR) as u64, &bytes_of(&stamps), chunk);
        self.tally.written += done as u64;
        let outcome = self.outcome(result.with_context(|| format!("write {sectors} sectors of {name} from {at}")))?;
        if outcome == Outcome::Full {
            ensure!(done.is_multiple_of(SECTOR), "{done} bytes of {name} were written, which are no whole sectors");
            self.take_back(name, &old, at, done / SECTOR)?;
        }
        Ok(outcome)
    }

    /// Of a write at `at` only the first `done` sectors happened.
    fn take_back(&mut self, name: &str, old: &[Stamp], at: usize, done: usize) -> Result<()> {
        let file = self.model.file_mut(name)?;
        let from = at + done;
        let length = if done == 0 { old.len() } else { old.len().max(from) };
        if from < old.len() {
            file.set(from, &old[from..]);
        }
        file.resize(length);
        Ok(())
    }

    fn resize(&mut self, name: &str) -> Result<Outcome> {
        let length = self.model.file(name)?.sectors().len() as u64;
        let sectors = self.random.below(length + length / 4 + 2);
        self.truncate(name, sectors as usize)
    }

    /// Shorter, on a block: that needs no room even where the block is shared.
    fn cut(&mut self, name: &str) -> Result<Outcome> {
        let blocks = self.model.file(name)?.sectors().len() as u64 / 8;
        let sectors = self.random.below(blocks + 1) * 8;
        ensure!(self.truncate(name, sectors as usize)? != Outcome::Full, "truncating {name} finds no room");
        Ok(Outcome::Done)
    }

    fn truncate(&mut self, name: &str, sectors: usize) -> Result<Outcome> {
        let old = self.model.file(name)?.sectors().to_vec();
        self.model.file_mut(name)?.resize(sectors);
        let opened = OpenOptions::new().write(true).open(self.path(name));
        let result = opened.and_then(|file| file.set_len((sectors * SECTOR) as u64));
        let outcome = self.outcome(result.with_context(|| format!("truncate {name} to {sectors} sectors")))?;
        if outcome == Outcome::Full {
            self.restore(name, &old)?;
        }
        Ok(outcome)
    }

    fn restore(&mut self, name: &str, old: &[Stamp]) -> Result<()> {
        let file = self.model.file_mut(name)?;
        file.resize(old.len());
        file.set(0, old);
        Ok(())
    }

    fn punch(&mut self, name: &str) -> Result<Outcome> {
        let blocks = self.model.file(name)?.sectors().len() as u64 / 8;
        if blocks == 0 {
            return Ok(Outcome::Done);
        }
        let first = self.random.below(blocks) as usize;
        let count = (1 + self.random.below(64) as usize).min(blocks as usize - first);
        self.model.file_mut(name)?.set(first * 8, &vec![HOLE; count * 8]);
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let outcome = self.fallocate(name, flags, first * 8, count * 8)?;
        ensure!(outcome != Outcome::Full, "punching whole blocks of {name} finds no room");
        Ok(outcome)
    }

    fn preallocate(&mut self, name: &str) -> Result<Outcome> {
        let length = self.model.file(name)?.sectors().len();
        let sectors = self.size();
        self.fallocate(name, FallocateFlags::FALLOC_FL_KEEP_SIZE, length, sectors)
    }

    fn fallocate(&mut self, name: &str, flags: FallocateFlags, at: usize, sectors: usize) -> Result<Outcome> {
        let opened = OpenOptions::new().write(true).open(self.path(name));
        let result = opened
            .and_then(|file| Ok(fallocate(file, flags, (at * SECTOR) as i64, (sectors * SECTOR) as i64)?))
            .with_context(|| format!("fallocate {flags:?} {sectors} sectors of {name} from {at}"));
        self.outcome(result)
    }

    fn rename(&mut self, name: &str) -> Result<Outcome> {
        let to = match self.random.one_in(3) {
            true => self.any().unwrap_or_default(),
            false => self.new_name(),
        };
        if to == name {
            return Ok(Outcome::Done);
        }
        self.model.rename(name, &to);
        let result = fs::rename(self.path(name), self.path(&to)).with_context(|| format!("rename {name} to {to}"));
        let outcome = self.outcome(result)?;
        ensure!(outcome != Outcome::Full, "renaming {name} finds no room");
        Ok(outcome)
    }

    fn remove(&mut self, name: &str) -> Result<Outcome> {
        self.model.remove(name);
        let outcome = self.outcome(fs::remove_file(self.path(name)).with_context(|| format!("remove {name}")))?;
        ensure!(outcome != Outcome::Full, "removing {name} finds no room");
        Ok(outcome)
    }

    fn reflink(&mut self, name: &str) -> Result<Outcome> {
        let sectors = self.model.file(name)?.sectors().to_vec();
        let to = self.new_name();
        self.model.create(&to);
        self.model.file_mut(&to)?.set(0, &sectors);
        self.shared = true;
        let options = OpenOptions::new().write(true).create_new(true).clone();
        let result = peerfs_client::File::open(self.path(name))
            .and_then(|source| peerfs_client::File::open_with(self.path(&to), &options)?.reflink_from(&source, 0, 0, 0))
            .map(drop)
            .with_context(|| format!("clone {name} as {to}"));
        let outcome = self.outcome(result)?;
        if outcome == Outcome::Full {
            let _ = fs::remove_file(self.path(&to));
            self.model.remove(&to);
        }
        Ok(outcome)
    }

    fn sync(&mut self, name: &str) -> Result<Outcome> {
        let result = File::open(self.path(name)).and_then(|file| file.sync_all());
        let outcome = self.outcome(result.with_context(|| format!("sync {name}")))?;
        ensure!(outcome != Outcome::Full, "syncing {name} finds no room");
        if outcome == Outcome::Done {
            self.model.synced(name);
        }
        Ok(outcome)
    }

    /// Maps a file, reads or writes through the mapping, and keeps it sometimes, to be revoked by what comes.
    fn map(&mut self, name: &str, write: bool) -> Result<Outcome> {
        let length = self.model.file(name)?.sectors().len();
        if length == 0 {
            return Ok(Outcome::Done);
        }
        let old = self.model.file(name)?.sectors().to_vec();
        let at = self.random.below(length as u64) as usize;
        let sectors = (1 + self.random.below(256) as usize).min(length - at);
        let stamps = match write {
            true => self.stamps(sectors),
            false => old[at..at + sectors].to_vec(),
        };
        if write {
            self.model.file_mut(name)?.set(at, &stamps);
        }
        let result = self.through_mapping(name, at, &stamps, write).with_context(|| format!("map {name}"));
        let outcome = self.outcome(result)?;
        if outcome == Outcome::Full {
            // How much of it was written nobody says: each sector is the old one or the new one.
            let actual = read_stamps(&self.path(name))?;
            ensure!(actual.len() == length, "{name} has changed its length by a mapping");
            for sector in at..at + sectors {
                ensure!([old[sector], stamps[sector - at]].contains(&actual[sector]), "sector {sector} of {name} is neither");
            }
            self.restore(name, &actual)?;
        }
        Ok(outcome)
    }

    fn through_mapping(&mut self, name: &str, at: usize, stamps: &[Stamp], write: bool) -> Result<()> {
        let session = match &self.session {
            Some(session) => session.clone(),
            None => self.session.insert(Session::open(&self.directory, ImporterSpec::cpu())?).clone(),
        };
        let file = peerfs_client::File::open_with(self.path(name), OpenOptions::new().read(true).write(write))?;
        let flags = if write { MapFlags::WRITE } else { MapFlags::empty() };
        let mapping = session.map(&file, .., flags)?;
        let offset = (at * SECTOR) as u64;
        if write {
            mapping.write_at(offset, &bytes_of(stamps))?;
            self.tally.written += (stamps.len() * SECTOR) as u64;
        } else {
            let mut bytes = vec![0; stamps.len() * SECTOR];
            mapping.read_at(offset, &mut bytes)?;
            ensure!(stamps_of(&bytes)? == stamps, "{name} reads otherwise through a mapping, from sector {at} on");
        }
        if self.held.len() < MOST_HELD && self.random.one_in(2) {
            self.held.push(mapping);
        } else {
            self.count_mapped(&mapping);
        }
        Ok(())
    }

    fn count_mapped(&mut self, mapping: &Mapping) {
        let moved = mapping.moved();
        self.tally.direct += moved.direct();
        self.tally.mapped += moved.direct() + moved.fallback;
    }
}

/// What a file on the mount has.
///
/// # Errors
/// It cannot be read, or is not as any write left it.
pub fn read_stamps(path: &std::path::Path) -> Result<Vec<Stamp>> {
    let context = || path.display().to_string();
    stamps_of(&fs::read(path).with_context(context)?).with_context(context)
}

/// Answers how many bytes were acknowledged.
fn write_in_chunks(path: &std::path::Path, offset: u64, bytes: &[u8], chunk: usize) -> (usize, Result<()>) {
    let mut done = 0;
    let file = match OpenOptions::new().write(true).open(path) {
        Ok(file) => file,
        Err(error) => return (done, Err(error.into())),
    };
    while done < bytes.len() {
        let end = bytes.len().min(done + chunk);
        match file.write_at(&bytes[done..end], offset + done as u64) {
            Ok(0) => return (done, Err(io::Error::from(io::ErrorKind::WriteZero).into())),
            Ok(count) => done += count,
            Err(error) => return (done, Err(error.into())),
        }
    }
    (done, Ok(()))
}

fn is_full(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let system = cause.downcast_ref::<io::Error>().is_some_and(|error| error.raw_os_error() == Some(libc::ENOSPC));
        system || cause.downcast_ref::<Errno>() == Some(&Errno::ENOSPC)
    })
}
