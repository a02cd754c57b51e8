//! Every trigger of a revocation, each with the whole order of steps.

use std::fs::{self, OpenOptions};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::fcntl::{FallocateFlags, fallocate};
use peerfs_abi::{MapFlags, Trigger};

use super::revocation::{LAST_STORE, in_order};
use crate::backend::{ApertureSize, Capability};
use crate::case::{Case, Setup};
use crate::scene::{CHUNK, PAGE, Scene, same_bytes};
use crate::witness::{PATIENCE, Witness};

/// For aperture pressure: two chunks have room.
const CRAMPED: Setup = Setup::PATIENT.aperture(ApertureSize::Mebibytes(4));

pub const CASES: &[Case] = &[
    Case::new("trigger-truncate", "truncate revokes before blocks are freed", Setup::PATIENT, truncate)
        .revoking(Trigger::Truncate),
    Case::new("trigger-open-truncate", "opening with O_TRUNC revokes as truncate does", Setup::PATIENT, open_truncate)
        .revoking(Trigger::Truncate),
    Case::new("trigger-punch", "punching a hole revokes the range", Setup::PATIENT, punch).revoking(Trigger::Punch),
    Case::new("trigger-zero-range", "zeroing a range revokes it", Setup::PATIENT, zero_range).revoking(Trigger::Punch),
    Case::new(
        "collapse-insert-refused",
        "collapsing and inserting a range are refused with EOPNOTSUPP, so they disturb no mapping",
        Setup::PATIENT,
        collapse_insert,
    ),
    Case::new(
        "trigger-unlink",
        "the end of the last link and handle revokes; a link or handle that is left does not",
        Setup::PATIENT,
        unlink,
    )
    .revoking(Trigger::Unlink),
    Case::new(
        "trigger-relocation",
        "a map that needs another window over the same blocks revokes the old one",
        Setup::PATIENT,
        relocation,
    )
    .revoking(Trigger::Relocation),
    Case::new(
        "trigger-aperture-pressure",
        "a map that finds no room evicts the window used longest ago",
        CRAMPED,
        aperture_pressure,
    )
    .revoking(Trigger::AperturePressure)
    .needing(&[Capability::SizedAperture]),
    Case::new(
        "trigger-administrator",
        "whoever may write a file may revoke its mappings, and nobody else but the owners",
        Setup::PATIENT,
        administrator,
    )
    .revoking(Trigger::Administrator),
    Case::new("trigger-revoke-mount", "the owner of the mount may revoke everything on it", Setup::PATIENT.alone(), revoke_mount)
        .revoking(Trigger::Administrator)
        .needing(&[Capability::Grants]),
    Case::new(
        "trigger-revoke-mapping",
        "the owner of the mount, and nobody else, may revoke one mapping by its number; those of other chunks stay",
        Setup::PATIENT,
        revoke_mapping,
    )
    .revoking(Trigger::Administrator)
    .needing(&[Capability::Grants]),
    Case::new(
        "trigger-client-gone",
        "a session that ends gives up what it holds at once, and nothing of others",
        Setup::PATIENT,
        client_gone,
    )
    .revoking(Trigger::ClientGone),
    Case::new("trigger-unmap", "what a client gives back is cut at once, without an event", Setup::PATIENT, unmap)
        .revoking(Trigger::Unmap),
    Case::new(
        "trigger-unmount",
        "a server that is asked to end revokes everything in order first",
        Setup::PATIENT.alone(),
        unmount,
    )
    .revoking(Trigger::Unmount)
    .needing(&[Capability::Grants]),
];

fn truncate(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", CHUNK)?;
    let witness = Witness::map(scene, &file, 0..CHUNK, MapFlags::WRITE)?;
    let writer = file.writer()?;
    in_order(scene, &witness, Trigger::Truncate, || Ok(writer.set_len(5 * PAGE)?))?;
    let mut expected = file.content[..5 * PAGE as usize].to_vec();
    expected[..LAST_STORE.len()].copy_from_slice(LAST_STORE);
    same_bytes(&fs::read(&file.path)?, &expected)
}

fn open_truncate(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", CHUNK)?;
    let witness = Witness::map(scene, &file, 0..CHUNK, MapFlags::WRITE)?;
    let open = || Ok(OpenOptions::new().write(true).truncate(true).open(&file.path).map(drop)?);
    in_order(scene, &witness, Trigger::Truncate, open)?;
    ensure!(fs::read(&file.path)?.is_empty(), "the file still has bytes");
    Ok(())
}

fn punch(scene: &mut Scene<'_>) -> Result<()> {
    change_blocks(scene, FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE)
}

fn zero_range(scene: &mut Scene<'_>) -> Result<()> {
    change_blocks(scene, FallocateFlags::FALLOC_FL_ZERO_RANGE)
}

fn change_blocks(scene: &mut Scene<'_>, mode: FallocateFlags) -> Result<()> {
    let file = scene.file("file", CHUNK)?;
    let witness = Witness::map(scene, &file, 0..CHUNK, MapFlags::WRITE)?;
    let writer = file.writer()?;
    in_order(scene, &witness, Trigger::Punch, || Ok(fallocate(&writer, mode, 4 * PAGE as i64, PAGE as i64)?))?;
    let mut expected = file.content.clone();
    expected[4 * PAGE as usize..5 * PAGE as usize].fill(0);
    expected[..LAST_STORE.len()].copy_from_slice(LAST_STORE);
    same_bytes(&fs::read(&file.path)?, &expected)
}

fn collapse_insert(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", CHUNK)?;
    let witness = Witness::map(scene, &file, 0..CHUNK, MapFlags::WRITE)?;
    let writers = [file.writer()?, file.open(libc::O_DIRECT | libc::O_NONBLOCK)?];
    for mode in [FallocateFlags::FALLOC_FL_COLLAPSE_RANGE, FallocateFlags::FALLOC_FL_INSERT_RANGE] {
        for writer in &writers {
            let refused = fallocate(writer, mode, PAGE as i64, PAGE as i64);
            ensure!(refused == Err(nix::errno::Errno::EOPNOTSUPP), "{mode:?} answers {refused:?}");
        }
    }
    witness.expect_undisturbed(scene)?;
    drop(witness);
    file.expect_content()
}

fn unlink(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", CHUNK)?;
    let mut witness = Witness::map(scene, &file, 0..CHUNK, MapFlags::empty())?;
    fs::hard_link(&file.path, scene.path("link"))?;
    fs::remove_file(scene.path("link"))?;
    witness.expect_undisturbed(scene)?;
    fs::remove_file(&file.path)?;
    // Two handles are left.
    witness.expect_undisturbed(scene)?;
    drop(file);
    witness.expect_undisturbed(scene)?;
    witness.file = fs::File::open("/dev/null")?;
    let event = witness.expect_event(scene, Trigger::Unlink)?;
    witness.expect_still_alive(scene)?;
    witness.acknowledge(&event)?;
    wait_until(|| witness.expect_cut().is_ok()).context("the window outlives its file")
}

fn relocation(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", CHUNK)?;
    let witness = Witness::map(scene, &file, 0..CHUNK, MapFlags::empty())?;
    let session = scene.session()?;
    let map = || scene_map(&session, &file);
    in_order(scene, &witness, Trigger::Relocation, map)
}

fn scene_map(session: &peerfs_client::Session, file: &crate::scene::Subject) -> Result<()> {
    let mapping = session.map(&file.handle, .., MapFlags::WRITE)?;
    ensure!(mapping.segments().iter().all(|segment| segment.reason.is_none()), "{:?}", mapping.segments());
    Ok(())
}

fn aperture_pressure(scene: &mut Scene<'_>) -> Result<()> {
    let (old, new) = (scene.file("old", CHUNK)?, scene.file("new", CHUNK)?);
    let witness = Witness::map(scene, &old, 0..CHUNK, MapFlags::WRITE)?;
    let second = scene.file("second", CHUNK)?;
    let younger = Witness::map(scene, &second, 0..CHUNK, MapFlags::WRITE)?;
    let session = scene.session()?;
    // A window that was used just now is not worth evicting: the map falls back, and is direct a little later.
    let map = || wait_until(|| scene_map(&session, &new).is_ok());
    in_order(scene, &witness, Trigger::AperturePressure, map)?;
    younger.expect_undisturbed(scene)?;
    let mut expected = old.content.clone();
    expected[..LAST_STORE.len()].copy_from_slice(LAST_STORE);
    same_bytes(&fs::read(&old.path)?, &expected)
}

fn administrator(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", CHUNK)?;
    fs::set_permissions(&file.path, std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    let witness = Witness::map(scene, &file, 0..CHUNK, MapFlags::empty())?;
    let stranger = crate::puppet::Puppet::start(scene, crate::kit::worker::NOBODY)?;
    let refused = stranger.ask(&format!("revoke {}", file.path.display()))?;
    ensure!(refused == format!("errno {}", libc::EPERM), "a stranger's revocation answers `{refused}`");
    witness.expect_undisturbed(scene)?;
    in_order(scene, &witness, Trigger::Administrator, || Ok(file.handle.revoke(..).map(drop)?))
}

fn revoke_mount(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", CHUNK)?;
    let witness = Witness::map(scene, &file, 0..CHUNK, MapFlags::empty())?;
    in_order(scene, &witness, Trigger::Administrator, || Ok(file.handle.revoke_mount().map(drop)?))
}

fn revoke_mapping(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 2 * CHUNK)?;
    let witness = Witness::map(scene, &file, 0..CHUNK, MapFlags::empty())?;
    let other = Witness::map(scene, &file, CHUNK..2 * CHUNK, MapFlags::empty())?;
    let number = witness.answer.mapping_id;
    fs::set_permissions(&file.path, std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
    let stranger = crate::puppet::Puppet::start(scene, crate::kit::worker::NOBODY)?;
    // Not even whether there is such a mapping.
    for asked in [1, number] {
        let refused = stranger.ask(&format!("revoke-mapping {asked} {}", file.path.display()))?;
        ensure!(refused == format!("errno {}", libc::EPERM), "a stranger's revocation answers `{refused}`");
    }
    let missing = file.handle.revoke_mapping(1).err().map(|error| error.to_string());
    ensure!(missing.is_some(), "a mapping that is not there is revoked");
    in_order(scene, &witness, Trigger::Administrator, || Ok(file.handle.revoke_mapping(number).map(drop)?))?;
    other.expect_undisturbed(scene)
}

fn client_gone(scene: &mut Scene<'_>) -> Result<()> {
    let (shared, own) = (scene.file("shared", CHUNK)?, scene.file("own", CHUNK)?);
    let stays = Witness::map(scene, &shared, 0..CHUNK, MapFlags::empty())?;
    let goes = Witness::map(scene, &shared, 0..CHUNK, MapFlags::empty())?;
    let Witness { session, held, .. } = Witness::map(scene, &own, 0..CHUNK, MapFlags::WRITE)?;
    held[0].window.write(7, LAST_STORE).ok().context("the store faults")?;
    let before = recorded(scene, Trigger::ClientGone)?;
    drop(goes);
    drop(session);
    wait_until(|| held.iter().all(|held| crate::kit::raw::readable(&held.window) == 0))
        .context("the window outlives its session")?;
    stays.expect_undisturbed(scene)?;
    ensure!(recorded(scene, Trigger::ClientGone)? > before, "it is not in the record");
    scene.evidence.trigger(Trigger::ClientGone);
    let mut found = vec![0; LAST_STORE.len()];
    own.handle.read_at(7, &mut found)?;
    same_bytes(&found, LAST_STORE)
}

/// Revocations by a trigger since the mount.
pub fn recorded(scene: &Scene<'_>, trigger: Trigger) -> Result<u64> {
    let info = scene.mount.info()?;
    let records = info["revocations"].as_array().context("info lists revocations")?;
    let record = records.iter().find(|record| record["trigger"] == trigger.name());
    Ok(record.and_then(|record| record["revoked"].as_u64()).unwrap_or(0))
}

fn unmap(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", CHUNK)?;
    let witness = Witness::map(scene, &file, 0..CHUNK, MapFlags::WRITE)?;
    let other = Witness::map(scene, &file, 0..CHUNK, MapFlags::WRITE)?;
    witness.store(0, LAST_STORE)?;
    // The window is shared: it stays the other's.
    other.session.unmap(other.answer.mapping_id)?;
    witness.expect_undisturbed(scene)?;
    let before = recorded(scene, Trigger::Unmap)?;
    witness.session.unmap(witness.answer.mapping_id)?;
    witness.expect_cut()?;
    ensure!(witness.session.event(Duration::ZERO)?.is_none(), "told of what it gave back");
    ensure!(recorded(scene, Trigger::Unmap)? == before + 1, "it is not in the record");
    scene.evidence.trigger(Trigger::Unmap);
    let again = witness.session.unmap(witness.answer.mapping_id);
    ensure!(again.err().and_then(|error| error.raw_os_error()) == Some(libc::EBADF), "a mapping ends twice");
    let mut found = vec![0; LAST_STORE.len()];
    file.handle.read_at(0, &mut found)?;
    same_bytes(&found, LAST_STORE)
}

fn unmount(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", CHUNK)?;
    let witness = Witness::map(scene, &file, 0..CHUNK, MapFlags::WRITE)?;
    let server = nix::unistd::Pid::from_raw(scene.mount.server_pid()?);
    nix::sys::signal::kill(server, nix::sys::signal::Signal::SIGTERM)?;
    let event = witness.expect_event(scene, Trigger::Unmount)?;
    witness.expect_still_alive(scene)?;
    witness.acknowledge(&event)?;
    wait_until(|| witness.expect_cut().is_ok()).context("the window outlives the mount")?;
    scene.mount.has_unmounted_itself();
    Ok(())
}

/// Polls until it is so.
pub fn wait_until(mut so: impl FnMut() -> bool) -> Result<()> {
    let start = std::time::Instant::now();
    while !so() {
        ensure!(start.elapsed() < PATIENCE, "it does not happen");
        std::thread::yield_now();
    }
    Ok(())
}
