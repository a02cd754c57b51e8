//! A change below a part of a mapping takes the chunks it concerns and leaves the rest.

use anyhow::{Context, Result, anyhow, ensure};
use nix::fcntl::{FallocateFlags, fallocate};
use peerfs_abi::{MapFlags, Trigger};

use crate::case::{Case, Setup};
use crate::evidence::Way::Direct;
use crate::kit::raw::readable;
use crate::scene::{CHUNK, PAGE, Scene, Subject, page_of};
use crate::witness::Witness;

const CHUNKS: u64 = 4;

pub const CASES: &[Case] = &[
    Case::new("partial-punch", "a hole of one block takes the one chunk it lies in", Setup::PATIENT, punch)
        .revoking(Trigger::Punch),
    Case::new("partial-write", "a buffered write beside WRITE takes the chunks it touches", Setup::PATIENT, write)
        .revoking(Trigger::CpuAccess),
    Case::new(
        "partial-truncate",
        "a truncate takes the chunks behind the new end, and the one it cuts",
        Setup::PATIENT,
        truncate,
    )
    .revoking(Trigger::Truncate),
    Case::new("partial-revoke", "an administrator's revocation of a range takes the chunks of the range", Setup::PATIENT, revoke)
        .revoking(Trigger::Administrator),
    Case::new(
        "partial-map-again",
        "what was taken is direct again when it is mapped anew, and the rest of the old mapping was so all the time",
        Setup::USUAL,
        map_again,
    ),
];

/// `act` takes exactly these chunks of a mapping of four, in any order; the rest is neither told of nor touched.
fn takes(
    scene: &Scene<'_>,
    file: &Subject,
    trigger: Trigger,
    taken: &[u64],
    act: impl FnOnce() -> Result<()> + Send,
) -> Result<()> {
    let witness = Witness::map(scene, file, 0..file.length(), MapFlags::WRITE)?;
    ensure!(witness.held.len() as u64 == CHUNKS, "{} grants for {CHUNKS} chunks", witness.held.len());
    let mut told: Vec<u64> = std::thread::scope(|scope| {
        let acting = scope.spawn(act);
        let mut told = Vec::new();
        for _ in taken {
            let event = witness.expect_event(scene, trigger)?;
            told.push(chunk_of(&witness, event.grant_id)?);
            witness.acknowledge(&event)?;
        }
        acting.join().map_err(|_| anyhow!("the change panicked"))??;
        anyhow::Ok(told)
    })?;
    told.sort_unstable();
    ensure!(told == taken, "it takes the chunks {told:?} instead of {taken:?}");
    scene.round_trips(20)?;
    ensure!(witness.session.event(std::time::Duration::ZERO)?.is_none(), "more is told of");
    for (chunk, held) in (0..).zip(&witness.held) {
        let (alive, all) = (readable(&held.window), held.window.length() / PAGE as usize);
        let is_taken = taken.contains(&chunk);
        ensure!(alive == if is_taken { 0 } else { all }, "{alive} of {all} pages of chunk {chunk} can be reached");
        ensure!(witness.is_current(chunk as usize)? != is_taken, "the sequence number of chunk {chunk} says otherwise");
        if !is_taken {
            witness.store(chunk * CHUNK, &page_of(0x22)).with_context(|| format!("chunk {chunk}"))?;
        }
    }
    drop(witness);
    // What was stored in what stayed is the file's.
    for chunk in (0..CHUNKS).filter(|chunk| !taken.contains(chunk)) {
        let mut found = page_of(0);
        file.handle.read_at(chunk * CHUNK, &mut found)?;
        crate::scene::same_bytes(&found, &page_of(0x22)).with_context(|| format!("chunk {chunk}"))?;
    }
    Ok(())
}

fn chunk_of(witness: &Witness, grant_id: u64) -> Result<u64> {
    let held = witness.held.iter().position(|held| held.segment.grant_id == grant_id);
    Ok(held.context("told of another's grant")? as u64)
}

fn punch(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", CHUNKS * CHUNK)?;
    let direct = file.open(libc::O_DIRECT | libc::O_NONBLOCK)?;
    let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    takes(scene, &file, Trigger::Punch, &[1], || Ok(fallocate(&direct, mode, (CHUNK + 2 * PAGE) as i64, PAGE as i64)?))
}

fn write(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", CHUNKS * CHUNK)?;
    let writer = file.writer()?;
    // Two bytes, on both sides of a border.
    takes(scene, &file, Trigger::CpuAccess, &[1, 2], || {
        Ok(std::os::unix::fs::FileExt::write_all_at(&writer, b"ab", 2 * CHUNK - 1)?)
    })
}

fn truncate(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", CHUNKS * CHUNK)?;
    let direct = file.open(libc::O_DIRECT | libc::O_NONBLOCK)?;
    takes(scene, &file, Trigger::Truncate, &[2, 3], || Ok(direct.set_len(2 * CHUNK + CHUNK / 2)?))
}

fn revoke(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", CHUNKS * CHUNK)?;
    takes(scene, &file, Trigger::Administrator, &[1, 2], || {
        let revoked = file.handle.revoke(CHUNK + PAGE..2 * CHUNK + PAGE)?;
        ensure!((revoked.grants, revoked.enforced) == (2, 0), "{revoked:?}");
        Ok(())
    })
}

fn map_again(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", CHUNKS * CHUNK)?;
    let session = scene.session()?;
    let mapping = scene.map_direct(&session, &file, MapFlags::empty())?;
    file.handle.revoke(CHUNK..2 * CHUNK)?;
    let at = |chunk: u64| (chunk * CHUNK, &file.content[(chunk * CHUNK) as usize..][..PAGE as usize]);
    for (offset, bytes) in [at(0), at(2), at(3)] {
        scene.reads_directly(&mapping, offset, bytes)?;
    }
    scene.reads_by_fallback(&mapping, CHUNK, at(1).1)?;
    let again = session.map(&file.handle, CHUNK..2 * CHUNK, MapFlags::empty())?;
    scene.expect_map(&again, &[(CHUNK..2 * CHUNK, Direct)])?;
    scene.reads_directly(&again, CHUNK, at(1).1)?;
    scene.reads_directly(&mapping, 2 * CHUNK, at(2).1)
}
