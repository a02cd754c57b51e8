//! The server's own death.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use peerfs_abi::MapFlags;
use peerfs_client::Error;

use super::triggers::wait_until;
use crate::backend::Capability;
use crate::case::{Case, Setup};
use crate::kit::raw::readable;
use crate::scene::{CHUNK, Scene};
use crate::witness::{PATIENCE, Witness};

pub const CASES: &[Case] = &[
    Case::new(
        "death-revokes",
        "the server's death cuts every window, and the sequence page says that it is gone",
        Setup::USUAL.alone(),
        revokes,
    )
    .needing(&[Capability::Grants]),
    Case::new(
        "death-library",
        "after the server's death the library answers ServerGone and never raises SIGBUS",
        Setup::USUAL.alone(),
        library,
    )
    .needing(&[Capability::Grants]),
    Case::new(
        "death-new-mount-waits",
        "a new mount comes only after every window of the dead one is cut",
        Setup::USUAL.alone(),
        new_mount_waits,
    )
    .needing(&[Capability::Grants, Capability::Persistent]),
];

fn kill_server(scene: &Scene<'_>) -> Result<()> {
    Ok(kill(Pid::from_raw(scene.mount.server_pid()?), Signal::SIGKILL)?)
}

fn revokes(scene: &mut Scene<'_>) -> Result<()> {
    let (read, written) = (scene.file("read", CHUNK)?, scene.file("written", CHUNK)?);
    let reader = Witness::map(scene, &read, 0..CHUNK, MapFlags::empty())?;
    let writer = Witness::map(scene, &written, 0..CHUNK, MapFlags::WRITE)?;
    kill_server(scene)?;
    wait_until(|| reader.expect_cut().is_ok() && writer.expect_cut().is_ok()).context("a window outlives the server")?;
    ensure!(reader.server_gone()? && writer.server_gone()?, "the sequence page does not say so");
    ensure!(writer.store(0, b"x").is_err(), "orphaned memory can be written");
    Ok(())
}

fn library(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", CHUNK)?;
    let session = scene.session()?;
    let mapping = scene.map_direct(&session, &file, MapFlags::WRITE)?;
    kill_server(scene)?;
    let start = Instant::now();
    let mut buffer = vec![0; CHUNK as usize];
    loop {
        match mapping.read_at(0, &mut buffer) {
            Err(Error::ServerGone) => break,
            // Until the kernel has noticed, the file's own bytes are still right.
            Ok(_) => ensure!(buffer == file.content, "wrong bytes"),
            Err(other) => return Err(other.into()),
        }
        ensure!(start.elapsed() < PATIENCE, "the library does not notice");
    }
    ensure!(matches!(mapping.write_at(0, &[1]), Err(Error::ServerGone)), "a write is accepted");
    Ok(())
}

fn new_mount_waits(scene: &mut Scene<'_>) -> Result<()> {
    let mut file = scene.file("file", CHUNK)?;
    let witness = Witness::map(scene, &file, 0..CHUNK, MapFlags::WRITE)?;
    witness.store(0, b"unsynced")?;
    kill_server(scene)?;
    scene.mount.umount()?;
    scene.backend.mount_again(scene.mount, "")?;
    // At once, without waiting: two authorities must never be there at the same time.
    let alive: usize = witness.held.iter().map(|held| readable(&held.window)).sum();
    ensure!(alive == 0, "{alive} pages of the dead mount live beside the new one");
    file.handle = peerfs_client::File::open(&file.path)?;
    let session = scene.session()?;
    scene.map_direct(&session, &file, MapFlags::empty()).map(drop)
}
