//! The last store before the cut: a holder stores increasing numbers through its window until
//! SIGBUS ends it, and notes each completed one elsewhere. Whatever it noted must be in the file.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use peerfs_abi::MapFlags;
use peerfs_sys::Window;

use super::raw::{RawSession, direct_segments, open_direct};
use super::worker::{NOBODY, Nursery, die_with_parent, say, shared_file};
use crate::{Random, ScratchMount, words};

const FILE_BYTES: u64 = 2 << 20;
/// Stores go round these places, so that many pages have a last store. Prime, and every place is in a page of its own.
const PLACES: u64 = 257;
const STRIDE: u64 = 8160;

/// What makes the server take the mapping back.
#[derive(Debug, Clone, Copy)]
enum Cut {
    Administrator,
    CachedRead,
    CachedWrite,
    Truncate,
    Unmount,
}

const CUTS: [Cut; 5] = [Cut::Administrator, Cut::CachedRead, Cut::CachedWrite, Cut::Truncate, Cut::Unmount];

/// The child: stores until it is cut.
///
/// # Errors
/// When it cannot map the file directly.
pub fn store(path: &Path, record: &Path) -> Result<()> {
    die_with_parent()?;
    let file = open_direct(path, true)?;
    let session = RawSession::open(path.parent().context("a file is in a directory")?)?;
    let answer = session.map_calmly(&file, 0, FILE_BYTES, MapFlags::WRITE)?;
    let segment = *direct_segments(&answer).next().with_context(|| format!("no direct segment: {:?}", answer.segments[0]))?;
    ensure!(segment.length == FILE_BYTES, "the file is in several segments");
    let window = Window::map(session.take(segment.grant_id, true)?, segment.grant_length as usize, true)?;
    let record = Window::map(OpenOptions::new().read(true).write(true).open(record)?, 4096, true)?;
    say("ready")?;
    for value in 1_u64.. {
        let place = segment.grant_offset + value % PLACES * STRIDE;
        let stored = window.store_volatile(place as usize, value).and_then(|()| record.store_volatile(0, value));
        ensure!(stored.is_ok(), "the place lies outside the window");
    }
    Ok(())
}

/// Rounds of storing and cutting, each ended by another event.
///
/// # Errors
/// When a noted store is lost.
pub fn rounds(seed: u64, rounds: usize, options: &[&str]) -> Result<()> {
    let mut random = Random::new(seed);
    let mut scratch = ScratchMount::new("64M", options)?;
    let nursery = Nursery::new(&scratch)?;
    for round in 0..rounds {
        let cut = CUTS[round % CUTS.len()];
        let stores = 10_000 + random.below(200_000);
        one_round(&mut scratch, &nursery, round, cut, stores, options)
            .with_context(|| format!("round {round}, cut by {cut:?}"))?;
    }
    scratch.umount()?;
    scratch.fsck()
}

fn one_round(scratch: &mut ScratchMount, nursery: &Nursery, round: usize, cut: Cut, stores: u64, options: &[&str]) -> Result<()> {
    let path = scratch.join(&format!("stored-{round}"));
    shared_file(&path, &vec![0; FILE_BYTES as usize])?;
    let record_path = scratch.directory().join(format!("record-{round}"));
    shared_file(&record_path, &[0; 4096])?;
    let record = File::open(&record_path)?;
    let mut worker = nursery.start(NOBODY, &words!["store", &path, &record_path])?;
    worker.expect("ready")?;
    while noted(&record)? < stores {
        std::thread::yield_now();
    }
    bring_about(scratch, &path, cut)?;
    let status = worker.wait()?;
    ensure!(status.signal() == Some(Signal::SIGBUS as i32), "the holder ended with {status} instead of SIGBUS");
    let last = noted(&record)?;
    if matches!(cut, Cut::Unmount) {
        scratch.mount(options)?;
    }
    check(&path, last)?;
    scratch.umount()?;
    scratch.mount(options)?;
    check(&path, last).context("after a remount")?;
    println!("{cut:?}: {last} stores noted, all of them in the file");
    Ok(fs::remove_file(&path)?)
}

fn bring_about(scratch: &mut ScratchMount, path: &Path, cut: Cut) -> Result<()> {
    match cut {
        Cut::Administrator => {
            let revoked = peerfs_client::File::open(path)?.revoke(..)?;
            ensure!(revoked.enforced >= 1, "the holder never acknowledges, yet nothing was enforced");
            println!("cut after {:?}", revoked.latency);
            Ok(())
        }
        Cut::CachedRead => Ok(File::open(path)?.read_exact_at(&mut [0; 8], FILE_BYTES - 8)?),
        Cut::CachedWrite => Ok(OpenOptions::new().write(true).open(path)?.write_all_at(&[1], FILE_BYTES - 1)?),
        Cut::Truncate => Ok(OpenOptions::new().write(true).open(path)?.set_len(FILE_BYTES - 4096)?),
        Cut::Unmount => scratch.umount_force(),
    }
}

/// The last store the holder noted; the page is shared with it.
fn noted(record: &File) -> Result<u64> {
    let mut bytes = [0; 8];
    record.read_exact_at(&mut bytes, 0)?;
    Ok(u64::from_ne_bytes(bytes))
}

/// Every place holds its last noted store. One more may have been completed and not noted.
fn check(path: &Path, last: u64) -> Result<()> {
    let file = File::open(path)?;
    for place in 0..PLACES {
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, place * STRIDE)?;
        let found = u64::from_ne_bytes(bytes);
        let expected = last.saturating_sub((last + PLACES - place) % PLACES);
        // The first round of places has no earlier store.
        let expected = if expected % PLACES == place { expected } else { 0 };
        let one_more = last + 1;
        let unnoted = one_more % PLACES == place && found == one_more;
        ensure!(
            found == expected || unnoted,
            "place {place} holds {found} instead of {expected}; the last noted store is {last}"
        );
    }
    Ok(())
}
