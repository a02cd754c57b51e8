//! Actors that know nothing of devices: read(2), write(2), O_DIRECT and shared views.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, Result};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use peerfs_sys::{FileView, Sharing};

use super::actor::{Actor, values_of};
use super::note::{Way, now};
use super::plan::{self, FATES, FILE_BYTES, Fate, LAST_CHUNK, Sort, Span};

/// Operations on one open file, then it is closed: whether writable handles are open decides what may be shared.
const BURST: u64 = 40;
const PAUSE_US: u64 = 4000;

/// Reads as far as the file goes.
pub(super) fn read_up_to(file: &File, offset: u64, bytes: &mut [u8]) -> Result<usize> {
    let mut done = 0;
    while done < bytes.len() {
        match file.read_at(&mut bytes[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("read"),
        }
    }
    Ok(done)
}

fn open(path: &Path, writable: bool, flags: OFlag) -> Result<File> {
    OpenOptions::new().read(true).write(writable).custom_flags(flags.bits()).open(path).context("open")
}

fn plain_read(actor: &mut Actor, way: Way, number: usize, file: &File) -> Result<()> {
    let span = plan::any(&mut actor.random);
    actor.read(way, number, span, |_, bytes| read_up_to(file, span.offset, bytes))
}

fn plain_write(actor: &mut Actor, way: Way, number: usize, file: &File, span: Span) -> Result<()> {
    actor.write(way, number, span, |_, bytes| {
        file.write_all_at(bytes, span.offset).context("write")?;
        Ok(true)
    })
}

/// Through the page cache; now and then by a handle that cannot write.
pub(super) fn buffered(actor: &mut Actor) -> Result<()> {
    let (number, path) = actor.file();
    let writable = !actor.random.one_in(3);
    let file = open(&path, writable, OFlag::empty())?;
    for _ in 0..actor.random.below(BURST) {
        if actor.over() {
            break;
        }
        match actor.random.below(8) {
            0..=2 if writable => {
                let span = plan::buffered(&mut actor.random, number);
                plain_write(actor, Way::Buffered, number, &file, span)?;
                actor.count("buffered writes");
            }
            3 if writable && actor.random.one_in(8) => {
                file.sync_data().context("fsync")?;
                actor.count("fsyncs");
            }
            _ => {
                plain_read(actor, Way::Buffered, number, &file)?;
                actor.count("buffered reads");
            }
        }
        actor.rest(PAUSE_US);
    }
    Ok(())
}

/// O_DIRECT.
pub(super) fn unbuffered(actor: &mut Actor) -> Result<()> {
    let (number, path) = actor.file();
    let writable = actor.random.one_in(2);
    let file = open(&path, writable, OFlag::O_DIRECT)?;
    for _ in 0..actor.random.below(BURST) {
        if actor.over() {
            break;
        }
        if writable && actor.random.one_in(2) {
            let span = plan::of_sort(&mut actor.random, Sort::Uncached);
            plain_write(actor, Way::Unbuffered, number, &file, span)?;
            actor.count("O_DIRECT writes");
        } else {
            plain_read(actor, Way::Unbuffered, number, &file)?;
            actor.count("O_DIRECT reads");
        }
        actor.rest(PAUSE_US);
    }
    Ok(())
}

/// One handle that fcntl(2) makes O_DIRECT and cached again, unseen by the server.
pub(super) fn toggled(actor: &mut Actor) -> Result<()> {
    let (number, path) = actor.file();
    let file = open(&path, true, if actor.random.one_in(2) { OFlag::O_DIRECT } else { OFlag::empty() })?;
    for _ in 0..actor.random.below(BURST) {
        if actor.over() {
            break;
        }
        if actor.random.one_in(3) {
            let flags = if actor.random.one_in(2) { OFlag::O_DIRECT } else { OFlag::empty() };
            fcntl(file.as_fd(), FcntlArg::F_SETFL(flags))?;
            actor.count("fcntl");
        }
        if actor.random.one_in(3) {
            let span = plan::of_sort(&mut actor.random, Sort::Uncached);
            plain_write(actor, Way::Toggled, number, &file, span)?;
        } else {
            plain_read(actor, Way::Toggled, number, &file)?;
        }
        actor.count("toggled reads and writes");
        actor.rest(PAUSE_US);
    }
    Ok(())
}

/// Loads from a shared view, one cell after the other.
pub(super) fn view_reader(actor: &mut Actor) -> Result<()> {
    let (number, path) = actor.file();
    let view = FileView::map(open(&path, false, OFlag::empty())?, FILE_BYTES as usize, Sharing::Shared, false).context("mmap")?;
    for _ in 0..actor.random.below(BURST) {
        if actor.over() {
            break;
        }
        let span = plan::any(&mut actor.random);
        for (cell, _) in span.cells() {
            load(actor, number, &view, plan::cell(cell));
        }
        actor.count("loads from views");
        actor.rest(PAUSE_US);
    }
    Ok(())
}

fn load(actor: &mut Actor, number: usize, view: &FileView, cell: Span) {
    let mut bytes = [0; 8];
    let begin = now();
    // Behind the end of the file there is nothing to read.
    if view.read(cell.offset as usize, &mut bytes).is_ok() {
        let end = now();
        actor.notes.read(Way::View, number, cell.first, begin, end, &values_of(cell, &bytes));
    }
}

/// The classic failure, on pages of its own: a buffered write leaves the page cached, and the stores that follow are silent.
pub(super) fn view_writer(actor: &mut Actor) -> Result<()> {
    let (number, path) = actor.file();
    let file = open(&path, true, OFlag::empty())?;
    let view = FileView::map(&file, FILE_BYTES as usize, Sharing::Shared, true).context("mmap")?;
    for _ in 0..actor.random.below(BURST / 4) {
        if actor.over() {
            break;
        }
        let page = plan::viewed_by(&mut actor.random, actor.notes.actor);
        if FATES[number] != Fate::Plain && page.first >= LAST_CHUNK * plan::CELLS.len() {
            continue;
        }
        if actor.random.one_in(2) {
            plain_write(actor, Way::Buffered, number, &file, page)?;
            actor.count("buffered writes");
        }
        for _ in 0..actor.random.below(12) {
            let cell = page.first + actor.random.below(page.count as u64) as usize;
            store(actor, number, &view, plan::cell(cell))?;
            actor.rest(PAUSE_US / 4);
        }
        if actor.random.one_in(10) {
            view.sync().context("msync")?;
            actor.count("msyncs");
        }
        actor.rest(PAUSE_US);
    }
    Ok(())
}

fn store(actor: &mut Actor, number: usize, view: &FileView, cell: Span) -> Result<()> {
    actor.count("stores to views");
    actor.write(Way::View, number, cell, |_, bytes| Ok(view.write(cell.offset as usize, bytes).is_ok()))
}
