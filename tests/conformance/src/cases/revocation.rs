//! The steps of a revocation and their order: tell, wait, cut, write back.

use std::fs::OpenOptions;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use peerfs_abi::{MapFlags, Trigger};
use peerfs_client::Error;

use crate::case::{Case, Setup};
use crate::kit::raw::{RawSession, open_direct};
use crate::scene::{CHUNK, PAGE, Scene, same_bytes};
use crate::witness::Witness;

/// Of the usual mount.
pub const DEADLINE: Duration = Duration::from_millis(100);
/// What the quickest of several revocations may take longer than the deadline.
const TOLERANCE: Duration = Duration::from_millis(100);
/// A busy machine delays some, and never each of so many.
const TRIES: u32 = 12;

pub const CASES: &[Case] = &[
    Case::new(
        "revoke-order",
        "an importer is told, waited for, cut, and only then is its memory written back",
        Setup::PATIENT,
        order,
    ),
    Case::new(
        "revoke-sequence-first",
        "the sequence number says stale before the importer is told",
        Setup::PATIENT,
        sequence_first,
    ),
    Case::new(
        "revoke-deadline-enforced",
        "an importer that does not acknowledge is cut at the deadline, not before",
        Setup::USUAL,
        deadline_enforced,
    ),
    Case::new(
        "revoke-ends-with-acknowledgement",
        "a revocation waits for the acknowledgement and no longer",
        Setup::PATIENT,
        ends_with_ack,
    ),
    Case::new(
        "revoke-all-holders",
        "every holder of a window is told and waited for, and all are cut together",
        Setup::PATIENT,
        all_holders,
    ),
    Case::new("revoke-holder-not-exempt", "the holder's own truncate revokes its own mapping", Setup::PATIENT, holder_not_exempt),
    Case::new(
        "revoke-hung-holder-not-exempt",
        "a hung holder's own truncate is not held up beyond the deadline",
        Setup::USUAL,
        hung_holder,
    ),
    Case::new(
        "revoke-last-store",
        "the last store before the cut survives, in a loop of stores until the cut",
        Setup::USUAL,
        last_store,
    ),
    Case::new(
        "revoke-other-files-unhindered",
        "a revocation that waits for an importer delays no other file",
        Setup::PATIENT,
        others_unhindered,
    ),
    Case::new(
        "revoke-window-dead-for-good",
        "a window that was cut never comes back: the next map gets a new one",
        Setup::USUAL,
        dead_for_good,
    ),
    Case::new(
        "revoke-guard-detects",
        "an access guard tells afterwards whether all was done on the file's own bytes",
        Setup::USUAL,
        guard_detects,
    ),
    Case::new(
        "revoke-library-falls-back",
        "the library's copying calls notice a revocation and serve the same bytes",
        Setup::USUAL,
        library_falls_back,
    ),
];

/// Runs `act` in a thread, which must revoke all of the witness's mapping, and asserts the order of the steps: the
/// sequence number changes, the importer is told, nothing is cut and `act` does not return before it acknowledges,
/// then everything is cut. With WRITE the last store before the acknowledgement goes to the start of the file.
pub fn in_order(scene: &Scene<'_>, witness: &Witness, trigger: Trigger, act: impl FnOnce() -> Result<()> + Send) -> Result<()> {
    let writable = witness.held[0].window.writable();
    std::thread::scope(|scope| {
        let acting = scope.spawn(act);
        for index in 0..witness.held.len() {
            let event = witness.expect_event(scene, trigger)?;
            let told = witness.held.iter().position(|held| held.segment.grant_id == event.grant_id);
            ensure!(!witness.is_current(told.context("told of another grant")?)?, "told before the sequence number changed");
            if index == 0 {
                witness.expect_still_alive(scene)?;
            }
            ensure!(!acting.is_finished(), "it was done without the acknowledgement");
            if writable && index == 0 {
                witness.store(witness.held[0].segment.file_offset, LAST_STORE)?;
            }
            witness.acknowledge(&event)?;
        }
        acting.join().map_err(|_| anyhow!("the revoker panicked"))??;
        witness.expect_cut()
    })
}

/// What [`in_order`] stores last.
pub const LAST_STORE: &[u8] = b"the last store";

fn order(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", CHUNK)?;
    let witness = Witness::map(scene, &file, 0..CHUNK, MapFlags::WRITE)?;
    in_order(scene, &witness, Trigger::Administrator, || Ok(file.handle.revoke(..).map(drop)?))?;
    let mut found = vec![0; LAST_STORE.len()];
    file.handle.read_at(0, &mut found)?;
    same_bytes(&found, LAST_STORE).context("the last store before the acknowledgement")
}

fn sequence_first(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", PAGE)?;
    let witness = Witness::map(scene, &file, 0..PAGE, MapFlags::empty())?;
    ensure!(witness.is_current(0)? && !witness.server_gone()?, "the number is stale from the start");
    in_order(scene, &witness, Trigger::Administrator, || Ok(file.handle.revoke(..).map(drop)?))
}

/// Revokes anew until one revocation takes no longer than the deadline allows; none may take less. `revoke` answers how
/// long it took.
fn quickest_is_punctual(mut revoke: impl FnMut(u32) -> Result<Duration>) -> Result<()> {
    let mut quickest = Duration::MAX;
    for number in 0..TRIES {
        let took = revoke(number)?;
        ensure!(took >= DEADLINE, "cut early, after {took:?}");
        quickest = quickest.min(took);
        if quickest < DEADLINE + TOLERANCE {
            return Ok(());
        }
    }
    anyhow::bail!("cut late: after {quickest:?} at the earliest")
}

fn deadline_enforced(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", CHUNK)?;
    for flags in [MapFlags::empty(), MapFlags::WRITE] {
        quickest_is_punctual(|_| {
            let witness = Witness::map(scene, &file, 0..CHUNK, flags)?;
            let start = Instant::now();
            let revoked = file.handle.revoke(..)?;
            ensure!(start.elapsed() >= DEADLINE, "it came back before the deadline");
            ensure!((revoked.grants, revoked.enforced) == (1, 1), "{revoked:?}");
            witness.expect_event(scene, Trigger::Administrator)?;
            witness.expect_cut()?;
            Ok(revoked.latency)
        })?;
    }
    file.expect_content()
}

fn ends_with_ack(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", CHUNK)?;
    let session = scene.session()?;
    let mapping = scene.map_direct(&session, &file, MapFlags::WRITE)?;
    // The library acknowledges; the deadline is far away.
    let revoked = file.handle.revoke(..)?;
    ensure!((revoked.grants, revoked.enforced) == (1, 0), "{revoked:?}");
    ensure!(revoked.latency < session.deadline() / 2, "it waited on, {:?}", revoked.latency);
    scene.reads_by_fallback(&mapping, 0, &file.content)
}

fn all_holders(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", CHUNK)?;
    let one = Witness::map(scene, &file, 0..CHUNK, MapFlags::empty())?;
    let two = Witness::map(scene, &file, 0..CHUNK, MapFlags::empty())?;
    std::thread::scope(|scope| {
        let revoker = scope.spawn(|| file.handle.revoke(..));
        let first = one.expect_event(scene, Trigger::Administrator)?;
        let second = two.expect_event(scene, Trigger::Administrator)?;
        one.acknowledge(&first)?;
        two.expect_still_alive(scene)?;
        one.expect_alive().context("cut before every holder has acknowledged")?;
        two.acknowledge(&second)?;
        let revoked = revoker.join().map_err(|_| anyhow!("the revoker panicked"))??;
        ensure!((revoked.grants, revoked.enforced) == (2, 0), "{revoked:?}");
        one.expect_cut()?;
        two.expect_cut()
    })
}

fn holder_not_exempt(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", CHUNK)?;
    let session = scene.session()?;
    let mapping = scene.map_direct(&session, &file, MapFlags::WRITE)?;
    let guarded = mapping.access(0..PAGE).map(drop);
    ensure!(guarded.is_ok(), "no address of a direct mapping");
    let start = Instant::now();
    // This thread truncates; the session's own thread acknowledges.
    OpenOptions::new().write(true).open(&file.path)?.set_len(PAGE)?;
    ensure!(start.elapsed() < session.deadline() / 2, "the truncate waited for its own importer");
    ensure!(matches!(mapping.access(0..PAGE), Err(Error::Revoked { .. })), "the holder was exempt");
    scene.reads_by_fallback(&mapping, 0, file.page(0))
}

fn hung_holder(scene: &mut Scene<'_>) -> Result<()> {
    quickest_is_punctual(|number| {
        let file = scene.file(&format!("file-{number}"), CHUNK)?;
        let witness = Witness::map(scene, &file, 0..CHUNK, MapFlags::WRITE)?;
        let writer = OpenOptions::new().write(true).open(&file.path)?;
        let start = Instant::now();
        writer.set_len(PAGE)?;
        let took = start.elapsed();
        witness.expect_event(scene, Trigger::Truncate)?;
        witness.expect_cut()?;
        Ok(took)
    })
}

fn last_store(scene: &mut Scene<'_>) -> Result<()> {
    const PLACES: u64 = 257;
    let file = scene.file("file", CHUNK)?;
    file.handle.write_at(0, &vec![0; CHUNK as usize])?;
    for _ in 0..3 {
        let witness = Witness::map(scene, &file, 0..CHUNK, MapFlags::WRITE)?;
        let last = std::thread::scope(|scope| {
            let storing = scope.spawn(|| -> u64 {
                // Each place in a page of its own; the copy faults instead of raising SIGBUS.
                let stored = |value: &u64| witness.store(value % PLACES * 7 * 1024, &value.to_le_bytes()).is_ok();
                (1..).take_while(stored).last().unwrap_or(0)
            });
            let revoked = file.handle.revoke(..)?;
            ensure!(revoked.enforced == 1, "the deadline was to pass: {revoked:?}");
            scene.evidence.trigger(Trigger::Administrator);
            storing.join().map_err(|_| anyhow!("the importer panicked"))
        })?;
        ensure!(last > PLACES, "{last} stores are too few to prove anything");
        for value in last + 1 - PLACES..=last {
            let mut found = [0; 8];
            file.handle.read_at(value % PLACES * 7 * 1024, &mut found)?;
            let found = u64::from_le_bytes(found);
            // The one that faulted may have been stored in part, at the place after the last.
            let torn = value == last + 1 - PLACES;
            ensure!(found == value || torn, "store {value} of {last} is lost: {found} is there");
        }
    }
    Ok(())
}

fn others_unhindered(scene: &mut Scene<'_>) -> Result<()> {
    let (held, other) = (scene.file("held", CHUNK)?, scene.file("other", CHUNK)?);
    let witness = Witness::map(scene, &held, 0..CHUNK, MapFlags::WRITE)?;
    std::thread::scope(|scope| {
        let revoker = scope.spawn(|| held.handle.revoke(..));
        let event = witness.expect_event(scene, Trigger::Administrator)?;
        // All of this is answered while the revocation waits.
        let session = scene.session()?;
        let mapping = scene.map_direct(&session, &other, MapFlags::WRITE)?;
        scene.reads_directly(&mapping, 0, &other.content)?;
        ensure!(other.handle.revoke(..)?.enforced == 0, "another importer was not waited for");
        OpenOptions::new().write(true).open(&other.path)?.set_len(PAGE)?;
        other.reader()?.sync_all()?;
        ensure!(!revoker.is_finished(), "the revocation did not wait");
        witness.acknowledge(&event)?;
        revoker.join().map_err(|_| anyhow!("the revoker panicked"))??;
        witness.expect_cut()
    })
}

fn dead_for_good(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", CHUNK)?;
    let dead = Witness::map(scene, &file, 0..CHUNK, MapFlags::WRITE)?;
    file.handle.revoke(..)?;
    dead.expect_cut()?;
    let fresh = Witness::map(scene, &file, 0..CHUNK, MapFlags::WRITE)?;
    ensure!(fresh.held[0].segment.grant_id != dead.held[0].segment.grant_id, "a grant's number is used again");
    fresh.store(0, b"new")?;
    dead.expect_cut()?;
    ensure!(dead.session.take(dead.held[0].segment.grant_id, true).is_err(), "the dead grant is handed over again");
    ensure!(nix::unistd::ftruncate(&dead.held[0].fd, CHUNK as i64).is_err() || dead.expect_cut().is_ok(), "it grows again");
    Ok(())
}

fn guard_detects(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", CHUNK)?;
    let session = scene.session()?;
    let mapping = scene.map_direct(&session, &file, MapFlags::empty())?;
    let guard = mapping.access(0..PAGE)?;
    ensure!(guard.still_valid() && guard.load(0)? == file.content[0], "the guard is stale from the start");
    // While the guard lives nothing is acknowledged: the cut is enforced.
    let revoked = file.handle.revoke(..)?;
    ensure!(revoked.enforced == 1, "acknowledged while a guard is held: {revoked:?}");
    ensure!(!guard.still_valid(), "the guard does not notice");
    drop(guard);
    ensure!(matches!(mapping.access(0..PAGE), Err(Error::Revoked { .. })), "an address of revoked memory");
    Ok(())
}

fn library_falls_back(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 2 * CHUNK)?;
    let session = scene.session()?;
    let mapping = scene.map_direct(&session, &file, MapFlags::WRITE)?;
    let (told, heard) = std::sync::mpsc::channel();
    mapping.on_revoke(move |revocation| {
        // Nobody listens any more once the case has failed.
        let _ = told.send(revocation.trigger);
    });
    file.handle.revoke(0..CHUNK)?;
    ensure!(heard.recv()? == Some(Trigger::Administrator), "the callback names another trigger");
    scene.reads_by_fallback(&mapping, 0, &file.content[..PAGE as usize])?;
    scene.reads_directly(&mapping, CHUNK, &file.content[CHUNK as usize..])?;
    // A map in the same session is direct again.
    let raw = RawSession::open(&scene.directory)?;
    scene.expect_direct(&*raw.map_calmly(&open_direct(&file.path, false)?, 0, CHUNK, MapFlags::empty())?)
}
