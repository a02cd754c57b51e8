//! Files of a peerfs mount, through the client library: directly where that is decided.

use std::fs::{File as PlainFile, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use peerfs_abi::names::{IMPORTERS, SERVER_IMPORTER, importer_flags};
use peerfs_client::{Attestation, File, ImporterSpec, MapFlags, Mapping, REVOKED, Reason, Segment, Session};

use super::blocking::Blocking;
use super::{PathBytes, psync};
use crate::pattern::{Region, Step};
use crate::settings::PathChoice;
use crate::values::Direction;
use crate::{Error, Job};

/// What bytes are counted under that fell back because the job asked for that.
const REQUESTED: &str = "requested";

/// After a revocation: the shortest time until the range is mapped again, unless the server names a longer one.
const PATIENCE: Duration = Duration::from_millis(100);

/// How often `path=direct` maps again for one transfer.
const ATTEMPTS: u32 = 8;

/// A file, and its mapping unless the job asks for fallback.
pub struct Peerfs {
    file: File,
    name: String,
    choice: PathChoice,
    mapped: Option<Mapped>,
    /// For fsync(2), opened so that it has no page cache.
    handle: PlainFile,
    /// Of earlier mappings, and of plain reads and writes.
    before: PathBytes,
}

/// A mapping, and what it takes to make it again.
struct Mapped {
    session: Session,
    mapping: Mapping,
    region: Region,
    flags: MapFlags,
    /// Part of it was found revoked.
    lost: bool,
    since: Instant,
}

impl Peerfs {
    pub fn new(job: &Job, clone: u32, region: Region) -> Result<Peerfs, Error> {
        let path = job.file(clone);
        let writes = job.settings.access.writes;
        let file = File::open_with(&path, OpenOptions::new().read(true).write(writes))?;
        // Also a job that never maps is told when this is no peerfs mount.
        file.info()?;
        let name = path.display().to_string();
        let flags = OFlag::O_DIRECT | OFlag::O_NONBLOCK;
        let handle = OpenOptions::new().read(true).custom_flags(flags.bits()).open(&path);
        let handle = handle.map_err(|source| Error::system("open", &name, source))?;
        let choice = job.settings.path;
        let mapped = match choice {
            PathChoice::Fallback => None,
            PathChoice::Auto | PathChoice::Direct => {
                let session = Session::open(directory_of(&path)?, importer(&job.settings.importer)?)?;
                let flags = if writes { MapFlags::WRITE } else { MapFlags::empty() };
                Some(Mapped::new(session, &file, region, flags)?)
            }
        };
        let engine = Peerfs { file, name, choice, mapped, handle, before: PathBytes::default() };
        engine.insist()?;
        Ok(engine)
    }

    /// With `path=direct`: is everything that is mapped direct?
    fn insist(&self) -> Result<(), Error> {
        let direct = self.choice == PathChoice::Direct;
        match self.mapped.as_ref().filter(|_| direct).and_then(Mapped::refused) {
            None => Ok(()),
            Some((segment, reason)) => {
                let why = format!("{}: {} ({})", reason.name(), reason.text(), reason.remedy());
                Err(self.not_direct(segment.file_offset, segment.length, why))
            }
        }
    }

    fn not_direct(&self, offset: u64, bytes: u64, why: String) -> Error {
        Error::NotDirect { file: self.name.clone(), offset, bytes, why }
    }

    /// Maps again what was revoked, when it is worth it.
    fn refresh(&mut self) -> Result<(), Error> {
        if self.mapped.as_ref().is_some_and(Mapped::is_due) {
            self.map_again()?;
        }
        Ok(())
    }

    fn map_again(&mut self) -> Result<(), Error> {
        let Some(old) = self.mapped.take() else { return Ok(()) };
        let Mapped { session, mapping, region, flags, .. } = old;
        add(&mut self.before, &mapping);
        self.before.remaps += 1;
        mapping.unmap()?;
        self.mapped = Some(Mapped::new(session, &self.file, region, flags)?);
        Ok(())
    }

    fn move_once(&mut self, step: &Step, buffer: &mut [u8]) -> Result<Attestation, Error> {
        if let Some(mapped) = &mut self.mapped {
            return mapped.transfer(step, buffer);
        }
        let count = match step.direction {
            Direction::Read => self.file.read_at(step.offset, buffer)? as u64,
            Direction::Write => self.file.write_at(step.offset, buffer).map(|()| step.length)?,
        };
        self.before.fallback += count;
        *self.before.reasons.entry(REQUESTED).or_default() += count;
        Ok(Attestation { fallback: count, ..Attestation::default() })
    }

    /// Repeats a transfer until it goes directly, mapping what was revoked again.
    fn move_directly(&mut self, step: &Step, buffer: &mut [u8]) -> Result<Attestation, Error> {
        for _ in 0..ATTEMPTS {
            let moved = self.move_once(step, buffer)?;
            if moved.fallback == 0 {
                return Ok(moved);
            }
            self.map_again()?;
            match self
                .mapped
                .as_ref()
                .and_then(|mapped| mapped.refused().map(|(_, reason)| (reason, mapped.mapping.retry_after())))
            {
                Some((Reason::Busy, retry_after)) => thread::sleep(retry_after.unwrap_or(PATIENCE)),
                _ => self.insist()?,
            }
        }
        self.insist()?;
        let why = format!("it was revoked {ATTEMPTS} times during one transfer: nothing else may use the file meanwhile");
        Err(self.not_direct(step.offset, step.length, why))
    }
}

impl Mapped {
    fn new(session: Session, file: &File, region: Region, flags: MapFlags) -> Result<Mapped, Error> {
        let mapping = session.map(file, region.start..region.start + region.length, flags)?;
        Ok(Mapped { session, mapping, region, flags, lost: false, since: Instant::now() })
    }

    fn transfer(&mut self, step: &Step, buffer: &mut [u8]) -> Result<Attestation, Error> {
        let moved = match step.direction {
            Direction::Read => self.mapping.read_at(step.offset, buffer)?,
            Direction::Write => self.mapping.write_at(step.offset, buffer)?,
        };
        // Not by a callback: a revocation that comes before it is set would go unnoticed.
        if moved.fallback > 0 && !self.lost {
            self.lost = self.mapping.fallback_reasons().iter().any(|(reason, _)| reason.is_none());
        }
        Ok(moved)
    }

    /// The first stretch that is not direct, and why.
    fn refused(&self) -> Option<(&Segment, Reason)> {
        self.mapping.segments().iter().find_map(|segment| segment.reason.map(|reason| (segment, reason)))
    }

    /// Was part of it revoked, or refused for a while, and is it time to ask again?
    fn is_due(&self) -> bool {
        let retry_after = self.mapping.retry_after();
        (self.lost || retry_after.is_some()) && self.since.elapsed() >= retry_after.unwrap_or_default().max(PATIENCE)
    }
}

impl Blocking for Peerfs {
    fn transfer(&mut self, step: &Step, buffer: &mut [u8]) -> Result<u64, Error> {
        let moved = match self.choice {
            PathChoice::Direct => self.move_directly(step, buffer)?,
            PathChoice::Auto | PathChoice::Fallback => {
                self.refresh()?;
                self.move_once(step, buffer)?
            }
        };
        Ok(moved.total())
    }

    fn sync(&mut self, data_only: bool) -> Result<(), Error> {
        psync::sync(&self.handle, &self.name, data_only)
    }

    fn paths(&self) -> Option<PathBytes> {
        let mut paths = self.before.clone();
        if let Some(mapped) = &self.mapped {
            add(&mut paths, &mapped.mapping);
        }
        Some(paths)
    }
}

fn add(paths: &mut PathBytes, mapping: &Mapping) {
    let moved = mapping.moved();
    paths.direct_window += moved.direct_window;
    paths.direct_bar += moved.direct_bar;
    paths.fallback += moved.fallback;
    for (reason, bytes) in mapping.fallback_reasons() {
        *paths.reasons.entry(reason.map_or(REVOKED, Reason::name)).or_default() += bytes;
    }
}

/// The importer that `NAME` or `NAME@PCI-ADDRESS` means, of those that a program registers for itself.
fn importer(text: &str) -> Result<ImporterSpec, Error> {
    let (name, pci_address) = match text.split_once('@') {
        Some((name, address)) => (name, Some(address.to_owned())),
        None => (text, None),
    };
    let known = || IMPORTERS.iter().map(|known| known.0).filter(|name| *name != SERVER_IMPORTER);
    let flags = known().find(|known| *known == name).and_then(importer_flags);
    let flags = flags.ok_or_else(|| {
        let names = known().collect::<Vec<_>>().join(", ");
        Error::system("use importer", name, std::io::Error::other(format!("expected one of {names}")))
    })?;
    Ok(ImporterSpec { name: name.to_owned(), flags, pci_address, ..ImporterSpec::cpu() })
}

/// The directory that a file really is in, which names its mount.
fn directory_of(path: &Path) -> Result<std::path::PathBuf, Error> {
    let real = path.canonicalize().map_err(|source| Error::system("find", path.display(), source))?;
    Ok(real.parent().map_or_else(|| "/".into(), Path::to_owned))
}
