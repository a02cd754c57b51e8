//! The actor that changes files under everybody: truncation, holes, policies, revocation by hand.

use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result};
use nix::fcntl::{FallocateFlags, fallocate};

use super::actor::Actor;
use super::note::{Way, now};
use super::plan::{self, CELLS, FATES, FILE_BYTES, FILE_CELLS, Fate, HOT_PAGES, LAST_CHUNK, PAGE};

const PAUSE_US: u64 = 60_000;
const POLICIES: [&[u8]; 5] = [b"prefer", b"prefer", b"prefer", b"respect-cache", b"never"];

/// One change.
pub(super) fn change(actor: &mut Actor) -> Result<()> {
    let (number, path) = actor.file();
    match actor.random.below(8) {
        0..=2 if FATES[number] == Fate::Pages => whole_pages(actor, number, &path)?,
        0..=2 if FATES[number] == Fate::Anywhere => {
            let first = LAST_CHUNK * CELLS.len();
            let cell = first + actor.random.below((FILE_CELLS - first) as u64) as usize;
            truncate(actor, number, &path, cell)?;
        }
        3 | 4 => {
            let file = peerfs_client::File::open(&path).context("open")?;
            let start = actor.random.below(FILE_BYTES / PAGE) * PAGE;
            if actor.random.one_in(2) { file.revoke(..) } else { file.revoke(start..start + PAGE) }.context("revoke")?;
            actor.count("revocations by hand");
        }
        5 => {
            let policy = *actor.random.pick(&POLICIES);
            peerfs_sys::set_xattr(&path, "user.peerfs.direct", policy).context("set the policy")?;
            actor.count("policies");
        }
        6 => {
            OpenOptions::new().write(true).open(&path)?.sync_all().context("fsync")?;
            actor.count("fsyncs");
        }
        _ => {}
    }
    actor.rest(PAUSE_US);
    actor.rest(PAUSE_US);
    Ok(())
}

fn whole_pages(actor: &mut Actor, number: usize, path: &Path) -> Result<()> {
    let hot = LAST_CHUNK + actor.random.below((HOT_PAGES - LAST_CHUNK) as u64) as usize;
    if actor.random.one_in(2) {
        return truncate(actor, number, path, hot * CELLS.len());
    }
    let span = plan::pages(hot, 2);
    let file = OpenOptions::new().write(true).open(path)?;
    let flags = match actor.random.one_in(2) {
        true => FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE,
        false => FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE,
    };
    let begin = now();
    fallocate(file.as_fd(), flags, span.offset as i64, span.length as i64).context("fallocate")?;
    actor.notes.wrote(Way::Punch, number, span, 0, begin, now());
    actor.count("holes");
    fill(actor, number, &file, span)
}

/// Cuts the file off at a cell and lets it grow again, by zeros.
fn truncate(actor: &mut Actor, number: usize, path: &Path, first: usize) -> Result<()> {
    let file = OpenOptions::new().write(true).open(path)?;
    let span = plan::tail(first);
    let begin = now();
    file.set_len(span.offset).context("truncate")?;
    actor.notes.wrote(Way::Truncate, number, span, 0, begin, now());
    actor.count("truncations");
    actor.rest(PAUSE_US / 10);
    file.set_len(FILE_BYTES).context("extend")?;
    for hot in first.div_ceil(CELLS.len())..HOT_PAGES {
        fill(actor, number, &file, plan::pages(hot, 1))?;
    }
    Ok(())
}

/// Holes are never direct: without new content the file would fall back for ever.
fn fill(actor: &mut Actor, number: usize, file: &File, span: plan::Span) -> Result<()> {
    actor.write(Way::Buffered, number, span, |_, bytes| {
        file.write_all_at(bytes, span.offset).context("fill")?;
        Ok(true)
    })
}
