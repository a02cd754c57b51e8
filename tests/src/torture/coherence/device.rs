//! Actors that are devices: mappings through the client library.

use anyhow::{Context, Result};
use peerfs_client::cpu::{Device, DeviceConfig};
use peerfs_client::{AccessGuard, Error, File, ImporterSpec, MapFlags, Mapping, Session};

use super::actor::{Actor, values_of};
use super::note::{NEVER, Way, now};
use super::plan::{self, FILE_BYTES, PAGE, Sort, Span};

/// Accesses of one mapping, then the file is mapped again.
const BURST: u64 = 60;
const PAUSE_US: u64 = 1500;
/// Where the device model sees the file.
const BASE: u64 = 1 << 30;

fn session(actor: &mut Actor) -> Result<Session> {
    if actor.session.is_none() || actor.random.one_in(50) {
        actor.session = Some(Session::open(&actor.directory, ImporterSpec::cpu()).context("open a session")?);
    }
    actor.session.clone().context("there is a session")
}

fn map(actor: &mut Actor, file: &File, flags: MapFlags) -> Result<Mapping> {
    let session = session(actor)?;
    // All of it, or from some page on.
    let start = if actor.random.one_in(2) { 0 } else { actor.random.below(FILE_BYTES / PAGE / 2) * PAGE };
    let mapping = session.map(file, start..FILE_BYTES, flags).context("map")?;
    actor.count("maps");
    Ok(mapping)
}

fn inside(mapping: &Mapping, span: Span) -> bool {
    let range = mapping.range();
    range.start <= span.offset && span.offset + span.length <= range.end
}

/// Maps to read.
pub(super) fn reader(actor: &mut Actor) -> Result<()> {
    let (number, path) = actor.file();
    let file = File::open(&path).context("open")?;
    let mapping = map(actor, &file, MapFlags::empty())?;
    for _ in 0..actor.random.below(BURST) {
        if actor.over() {
            break;
        }
        read(actor, number, &mapping)?;
        actor.rest(PAUSE_US);
    }
    actor.moved += mapping.moved();
    Ok(())
}

/// Maps to read and write.
pub(super) fn writer(actor: &mut Actor) -> Result<()> {
    let (number, path) = actor.file();
    let file = File::open_with(&path, std::fs::OpenOptions::new().read(true).write(true)).context("open")?;
    let mapping = map(actor, &file, MapFlags::WRITE)?;
    for _ in 0..actor.random.below(BURST) {
        if actor.over() {
            break;
        }
        match actor.random.below(4) {
            0 => read(actor, number, &mapping)?,
            1 => copy_in(actor, number, &mapping)?,
            _ => store(actor, number, &mapping)?,
        }
        actor.rest(PAUSE_US);
    }
    actor.moved += mapping.moved();
    Ok(())
}

fn read(actor: &mut Actor, number: usize, mapping: &Mapping) -> Result<()> {
    let span = plan::any(&mut actor.random);
    if !inside(mapping, span) {
        return Ok(());
    }
    if actor.random.one_in(2) {
        return load(actor, number, mapping, plan::cell(span.first));
    }
    actor.count("device copies out");
    actor.read(Way::Copying, number, span, |_, bytes| {
        let moved = mapping.read_at(span.offset, bytes).context("device read")?;
        Ok(moved.total() as usize)
    })
}

fn copy_in(actor: &mut Actor, number: usize, mapping: &Mapping) -> Result<()> {
    // It may fall back to a write past the page cache.
    let span = plan::of_sort(&mut actor.random, Sort::Uncached);
    if !inside(mapping, span) {
        return Ok(());
    }
    actor.count("device copies in");
    actor.write(Way::Copying, number, span, |_, bytes| {
        mapping.write_at(span.offset, bytes).context("device write")?;
        Ok(true)
    })
}

/// The address of a cell, if it is mapped directly at present.
fn guard(mapping: &Mapping, cell: Span) -> Result<Option<AccessGuard>> {
    match mapping.access(cell.offset..cell.offset + cell.length) {
        Ok(guard) => Ok(Some(guard)),
        Err(Error::Fallback { .. } | Error::Revoked { .. } | Error::Split { .. }) => Ok(None),
        Err(error) => Err(error).context("access"),
    }
}

/// By address. What was loaded counts if the guard is valid afterwards.
fn load(actor: &mut Actor, number: usize, mapping: &Mapping, cell: Span) -> Result<()> {
    let begin = now();
    let Some(guard) = guard(mapping, cell)? else { return Ok(()) };
    if let Some(word) = guard.load_word(0)?
        && guard.still_valid()
    {
        let end = now();
        guard.count(8);
        actor.notes.read(Way::Guard, number, cell.first, begin, end, &values_of(cell, &word.to_le_bytes()));
        actor.count("device loads");
    }
    Ok(())
}

/// Stores to some cells of a page by address.
fn store(actor: &mut Actor, number: usize, mapping: &Mapping) -> Result<()> {
    let sort = if actor.random.one_in(2) { Sort::Uncached } else { Sort::Viewed };
    let span = plan::of_sort(&mut actor.random, sort);
    if !inside(mapping, span) {
        return Ok(());
    }
    for (cell, _) in span.cells() {
        let cell = plan::cell(cell);
        let begin = now();
        let Some(guard) = guard(mapping, cell)? else { return Ok(()) };
        let value = actor.value();
        guard.store(0, value)?;
        let end = if guard.still_valid() { now() } else { NEVER };
        guard.count(8);
        drop(guard);
        actor.notes.wrote(Way::Guard, number, cell, value, begin, end);
        actor.count("device stores");
    }
    Ok(())
}

/// The device model with its own page table: an access faults, maps, and is shot down.
pub(super) fn faulting(actor: &mut Actor) -> Result<()> {
    let (number, path) = actor.file();
    let file = File::open_with(&path, std::fs::OpenOptions::new().read(true).write(true)).context("open")?;
    let writable = actor.random.one_in(2);
    let flags = if writable { MapFlags::WRITE } else { MapFlags::empty() };
    let session = session(actor)?;
    let device = Device::new(&session, DeviceConfig::default());
    device.bind(BASE, &file, 0, FILE_BYTES, flags).context("bind")?;
    for _ in 0..actor.random.below(BURST) {
        if actor.over() {
            break;
        }
        if writable && actor.random.one_in(2) {
            let span = plan::of_sort(&mut actor.random, Sort::Uncached);
            actor.write(Way::Faulting, number, span, |_, bytes| {
                device.store(BASE + span.offset, bytes).context("device store")?;
                Ok(true)
            })?;
        } else {
            let span = plan::any(&mut actor.random);
            actor.read(Way::Faulting, number, span, |_, bytes| device.load(BASE + span.offset, bytes).context("device load"))?;
        }
        actor.count("accesses of the faulting device");
        actor.rest(PAUSE_US);
    }
    actor.moved += device.stats().moved;
    Ok(())
}
