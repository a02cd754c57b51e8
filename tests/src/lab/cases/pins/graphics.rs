//! The graphics subsystem (vgem): it holds a pin by a handle of its own.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use peerfs_abi::MapFlags;
use peerfs_client::{ImporterSpec, PinKind, Session};
use peerfs_conformance::kit::{GraphicsDevice, Imported};
use peerfs_sys::Window;

use super::{Volume, pin, same};
use crate::lab::guest::Guest;

const LENGTH: usize = 1 << 20;
const HALF: usize = LENGTH / 2;

pub fn imported(guest: &mut Guest<'_>) -> Result<()> {
    guest.run("modprobe", &["vgem"])?;
    let volume = Volume::mount(guest)?;
    lives_with_the_handle(guest, &volume)?;
    is_detached_by_force(guest, &volume)?;
    read_pins_are_none(&volume)?;
    volume.umount(guest)
}

fn lives_with_the_handle(guest: &Guest<'_>, volume: &Volume) -> Result<()> {
    let (path, mut content) = volume.file("file", LENGTH, guest.seed())?;
    let import = import(volume, &path)?;
    let window = window(&import)?;
    same(&loaded(&window)?, &content, "loads through the handle")?;
    content[5000..9000].fill(7);
    window.write(5000, &content[5000..9000]).ok().context("the store faults")?;
    drop(window);
    same(&fs::read(&path)?, &content, "read(2) after a store through the handle")?;

    volume.outlive_a_look()?;
    volume.expect_pin("live", LENGTH)?;
    File::options().write(true).open(&path)?.set_len(HALF as u64)?;
    volume.expect_pin("orphaned", LENGTH)?;
    volume.expect_quarantined((LENGTH - HALF) as u64)?;
    same(&loaded(&self::window(&import)?)?, &content, "loads through the handle after a truncate")?;
    drop(import);
    volume.expect_all_back()?;
    same(&fs::read(&path)?, &content[..HALF], "read(2) after the pin")
}

fn is_detached_by_force(guest: &Guest<'_>, volume: &Volume) -> Result<()> {
    let (path, content) = volume.file("forced", LENGTH, guest.seed() + 1)?;
    let import = import(volume, &path)?;
    volume.detach(guest, &path, LENGTH)?;
    let window = window(&import)?;
    window.write(0, &[0xEE; LENGTH]).ok().context("the store faults")?;
    same(&fs::read(&path)?, &content, "read(2) after a store to what was detached")?;
    let session = Session::open(&volume.point, ImporterSpec::cpu())?;
    let mapping = session.map(&peerfs_client::File::open(&path)?, .., MapFlags::empty())?;
    let mut found = vec![0; LENGTH];
    let moved = mapping.read_at(0, &mut found)?;
    ensure!(moved.direct() == LENGTH as u64, "the file is not mapped as if there had been no pin: {moved:?}");
    same(&found, &content, "a mapping beside what was detached")?;
    drop((mapping, session, window));
    volume.outlive_a_look()?;
    volume.expect_pin("detached", LENGTH)?;
    drop(import);
    volume.expect_all_back()
}

/// Nobody could keep a dma-buf from being written.
fn read_pins_are_none(volume: &Volume) -> Result<()> {
    let (path, _) = volume.file("read", 4096, 1)?;
    let session = Session::open(&volume.point, ImporterSpec::cpu())?;
    let mapping = pin(&session, &peerfs_client::File::open(&path)?, MapFlags::PIN, PinKind::Memfd)?;
    let device = GraphicsDevice::any().context("the graphics device is gone")?;
    ensure!(device.import(mapping.pins()[0].fd.as_fd()).is_err(), "the driver imports a memory file");
    drop((mapping, session));
    volume.expect_all_back()
}

fn import(volume: &Volume, path: &Path) -> Result<Imported> {
    let device = GraphicsDevice::any().context("vgem gives no device")?;
    volume.lend(path, |mapping| device.import(mapping.pins()[0].fd.as_fd()).context("vgem does not import the pin"))
}

/// The memory, by the driver's handle.
fn window(import: &Imported) -> Result<Window> {
    Ok(Window::map(import.export().context("the driver's handle")?, LENGTH, true)?)
}

fn loaded(window: &Window) -> Result<Vec<u8>> {
    let mut found = vec![0; LENGTH];
    window.read(0, &mut found).ok().context("the load faults")?;
    Ok(found)
}
