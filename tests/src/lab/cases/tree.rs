//! A tree that is copied in, and is there after a remount and after a restart of the machine.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use crate::lab::guest::{A, B, Controller, Guest, text, tree};

pub fn ns1_first(guest: &mut Guest<'_>) -> Result<()> {
    first(guest, B, "ns1")
}

pub fn ns1_again(guest: &mut Guest<'_>) -> Result<()> {
    again(guest, B, "ns1")
}

pub fn pmr_first(guest: &mut Guest<'_>) -> Result<()> {
    first(guest, A, "pmr")
}

pub fn pmr_again(guest: &mut Guest<'_>) -> Result<()> {
    again(guest, A, "pmr")
}

fn first(guest: &mut Guest<'_>, controller: Controller, part: &str) -> Result<()> {
    guest.bind(controller)?;
    let device = controller.part(part);
    guest.peerfs(&["mkfs", &device])?;
    fill(guest, &device)?;
    look(guest, &device)
}

fn again(guest: &mut Guest<'_>, controller: Controller, part: &str) -> Result<()> {
    guest.bind(controller)?;
    look(guest, &controller.part(part))
}

/// Copies the tree of the seed into a new volume.
pub fn fill(guest: &mut Guest<'_>, device: &str) -> Result<()> {
    let source = source(guest)?;
    let point = guest.mount(device)?;
    guest.run("cp", &["-a", &text(&source), &text(&point)])?;
    tree::verify(&point.join("tree"), guest.seed())?;
    guest.umount(&point)
}

/// The tree is in the volume, and the volume is clean.
pub fn look(guest: &mut Guest<'_>, device: &str) -> Result<()> {
    let point = guest.mount(device)?;
    tree::verify(&point.join("tree"), guest.seed())?;
    guest.umount(&point)?;
    let said = guest.peerfs(&["fsck", device])?;
    ensure!(said.contains("clean"), "fsck says {said}");
    Ok(())
}

/// The tree in memory, made once.
fn source(guest: &Guest<'_>) -> Result<PathBuf> {
    let source = Path::new("/tmp/tree");
    if !source.exists() {
        tree::make(source, guest.seed())?;
    }
    Ok(source.to_owned())
}
