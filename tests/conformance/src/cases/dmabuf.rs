//! Pins that are dma-bufs, which nobody can cut. They run where the kernel has `/dev/udmabuf`.

use std::fs;
use std::os::fd::AsFd;

use anyhow::{Context, Result, ensure};
use peerfs_client::PinKind;
use peerfs_sys::Window;

use super::pins::{WRITE_PIN, memory, none_left, pin};
use super::triggers::wait_until;
use crate::backend::Capability;
use crate::case::{Case, Setup};
use crate::kit::GraphicsDevice;
use crate::kit::raw::readable;
use crate::scene::{PAGE, Scene, Subject, cpu_reads, page_of, same_bytes};

pub const CASES: &[Case] = &[
    Case::new(
        "pin-dmabuf",
        "where the kernel can, a WRITE pin is a dma-buf, and says so; it shows and changes the file's bytes",
        Setup::USUAL,
        is_dmabuf,
    )
    .needing(&[Capability::DmaBuf]),
    Case::new(
        "pin-dmabuf-detached",
        "a dma-buf that is taken back by force is detached: the file goes on, the memory stays charged until its holders let go",
        Setup::USUAL,
        detached,
    )
    .needing(&[Capability::DmaBuf]),
    Case::new(
        "pin-dmabuf-imported",
        "a pin lives while only an import in a driver of the kernel is left of it",
        Setup::USUAL,
        imported,
    )
    .needing(&[Capability::DmaBuf, Capability::KernelImporter]),
    Case::new(
        "pin-dmabuf-unmounted",
        "a dma-buf keeps no mount busy: unmounting detaches it, and what was stored until then is the file's",
        Setup::USUAL.alone(),
        unmounted,
    )
    .needing(&[Capability::DmaBuf]),
    Case::new(
        "pin-dmabuf-orphaned",
        "a server that dies leaves a dma-buf to its holders, and what they store from then on reaches nobody",
        Setup::USUAL.alone(),
        orphaned,
    )
    .needing(&[Capability::DmaBuf]),
];

fn is_dmabuf(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 4 * PAGE)?;
    let session = scene.session()?;
    let mapping = pin(scene, &session, &file, WRITE_PIN)?;
    ensure!(mapping.pins()[0].kind == PinKind::Dmabuf, "it is a {}", mapping.pins()[0].kind.name());
    let (fd, window) = memory(&mapping, true)?;
    window.write(PAGE as usize, &page_of(0x22)).ok().context("the store faults")?;
    let mut found = page_of(0);
    file.handle.read_at(PAGE, &mut found)?;
    same_bytes(&found, &page_of(0x22))?;
    scene.reads_directly(&mapping, 0, file.page(0))?;
    drop((mapping, fd, window));
    none_left(scene)?;
    cpu_reads(&file.reader()?, PAGE, &page_of(0x22))
}

fn detached(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 4 * PAGE)?;
    let session = scene.session()?;
    let mapping = pin(scene, &session, &file, WRITE_PIN)?;
    let (fd, window) = memory(&mapping, true)?;
    window.write(0, &page_of(0x22)).ok().context("the store faults")?;
    let revoked = file.handle.revoke_pins(..)?;
    ensure!((revoked.pins_cut, revoked.pins_detached) == (0, 1), "{revoked:?}");
    drop(mapping);
    ensure!(readable(&window) == 4, "the memory of a dma-buf was cut");
    let info = scene.mount.info()?;
    ensure!(info["pins"] == 1 && info["pinned_bytes"] == 4 * PAGE, "it is no longer charged: {info}");
    let ledger: serde_json::Value = serde_json::from_slice(&fs::read(scene.path(".peerfs/mappings.json"))?)?;
    ensure!(ledger["pins"][0]["state"] == "detached", "the ledger says {}", ledger["pins"]);
    // What is stored from now on reaches nobody, and the file is mapped as if there had been no pin.
    window.write(0, &page_of(0xEE)).ok().context("the store faults")?;
    cpu_reads(&file.reader()?, 0, &page_of(0x22))?;
    let again = scene.map_direct(&session, &file, peerfs_abi::MapFlags::empty())?;
    scene.reads_directly(&again, 0, &page_of(0x22))?;
    drop((again, fd, window));
    none_left(scene)
}

/// A dma-buf whose first page was stored to, and nothing else of its pin.
fn stored(scene: &Scene<'_>, file: &Subject) -> Result<Window> {
    let session = scene.session()?;
    let (_, window) = memory(&pin(scene, &session, file, WRITE_PIN)?, true)?;
    window.write(0, &page_of(0x22)).ok().context("the store faults")?;
    Ok(window)
}

/// The holder still has its memory; what is stored there is not the file's any more.
fn expect_apart(scene: &mut Scene<'_>, window: &Window, mut content: Vec<u8>) -> Result<()> {
    ensure!(readable(window) == 4, "the memory of a dma-buf was cut");
    window.write(0, &page_of(0xEE)).ok().context("the store faults")?;
    scene.backend.mount_again(scene.mount, "")?;
    ensure!(scene.mount.info()?["pins"] == 0, "the pin is there again");
    window.write(PAGE as usize, &page_of(0xEE)).ok().context("the store faults")?;
    content[..PAGE as usize].fill(0x22);
    ensure!(!scene.backend.has(Capability::Persistent) || fs::read(scene.path("file"))? == content, "the file has other bytes");
    Ok(())
}

fn unmounted(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 4 * PAGE)?;
    let (window, content) = (stored(scene, &file)?, file.content.clone());
    drop(file);
    wait_until(|| scene.mount.info().is_ok_and(|info| info["sessions"] == 0)).context("a session stays")?;
    scene.mount.umount()?;
    expect_apart(scene, &window, content)
}

fn orphaned(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 4 * PAGE)?;
    let (window, content) = (stored(scene, &file)?, file.content.clone());
    file.open(libc::O_DIRECT | libc::O_NONBLOCK)?.sync_all()?;
    drop(file);
    scene.mount.crash()?;
    expect_apart(scene, &window, content)
}

fn imported(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 4 * PAGE)?;
    let import = {
        let session = scene.session()?;
        let mapping = pin(scene, &session, &file, WRITE_PIN)?;
        let device = GraphicsDevice::any().context("the graphics device is gone")?;
        device.import(mapping.pins()[0].fd.as_fd()).context("the driver does not import the pin")?
    };
    wait_until(|| scene.mount.info().is_ok_and(|info| info["sessions"] == 0 && info["mappings"] == 0))?;
    super::pin_quarantine::expect_alive(scene, 1)?;
    drop(import);
    none_left(scene)
}
