//! A storage device that fails: what maps are answered, and that mappings end in order.

use anyhow::{Context, Result, ensure};
use peerfs_abi::names::SERVER_IMPORTER;
use peerfs_abi::{MapFlags, Reason, Trigger};
use peerfs_sys::Sharing;

use crate::backend::Capability;
use crate::case::{Case, Setup};
use crate::evidence::Way::{Direct, Fallback};
use crate::scene::{CHUNK, PAGE, Scene, Subject, page_of, store, view};
use crate::witness::Witness;

/// How often a store may come too late to be dirty.
const STORES: u32 = 100;
const FAILING: Setup = Setup::with("faults,deadline_ms=30000").alone();

pub const CASES: &[Case] = &[
    Case::new(
        "reason-device-resetting",
        "while the device is being reset everything falls back with DeviceResetting",
        FAILING,
        resetting,
    )
    .refusing(Reason::DeviceResetting)
    .needing(&[Capability::Faults]),
    Case::new(
        "reason-media-error",
        "blocks that cannot be read fall back with MediaError, their neighbours are direct",
        FAILING,
        media_error,
    )
    .refusing(Reason::MediaError)
    .needing(&[Capability::Faults]),
    Case::new(
        "reason-page-cache-dirty",
        "dirty pages that cannot be written back fall back with PageCacheDirty",
        FAILING,
        page_cache_dirty,
    )
    .refusing(Reason::PageCacheDirty)
    .needing(&[Capability::Grants, Capability::Faults]),
    Case::new("trigger-device-reset", "the block device's reset revokes every mapping of it, in order", FAILING, reset_revokes)
        .revoking(Trigger::DeviceEvent)
        .needing(&[Capability::Grants, Capability::Faults]),
    Case::new(
        "trigger-device-removed",
        "the block device's removal revokes every mapping of it, in order",
        FAILING,
        removal_revokes,
    )
    .revoking(Trigger::DeviceEvent)
    .needing(&[Capability::Grants, Capability::Faults]),
    Case::new(
        "trigger-media-error",
        "a media error revokes the mappings of its blocks and no others",
        FAILING,
        media_error_revokes,
    )
    .revoking(Trigger::DeviceEvent)
    .needing(&[Capability::Grants, Capability::Faults]),
];

pub fn command(scene: &Scene<'_>, text: &str) -> Result<()> {
    std::fs::write(scene.mount.join(".peerfs/faults"), text).with_context(|| text.to_owned())
}

/// Where a file's first block is on the device.
pub fn device_offset(file: &Subject) -> Result<u64> {
    let table = file.handle.query(.., MapFlags::empty(), SERVER_IMPORTER)?;
    table.segments[0].device_offset.context("the first block is not direct")
}

fn resetting(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 2 * PAGE)?;
    let session = scene.session()?;
    command(scene, "reset\n")?;
    let refused = [(0..2 * PAGE, Fallback(Reason::DeviceResetting))];
    scene.expect_table(&session.query(&file.handle, .., MapFlags::empty())?, &refused)?;
    let mapping = session.map(&file.handle, .., MapFlags::empty())?;
    scene.expect_map(&mapping, &refused)?;
    scene.reads_by_fallback(&mapping, 0, &file.content)?;
    command(scene, "recover\n")?;
    scene.map_direct(&session, &file, MapFlags::WRITE).map(drop)
}

fn media_error(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 4 * PAGE)?;
    let session = scene.session()?;
    command(scene, &format!("media-error {} 1\n", device_offset(&file)? + 2 * PAGE + 5))?;
    let expected = [(0..2 * PAGE, Direct), (2 * PAGE..3 * PAGE, Fallback(Reason::MediaError)), (3 * PAGE..4 * PAGE, Direct)];
    scene.expect_table(&session.query(&file.handle, .., MapFlags::empty())?, &expected)?;
    let mapping = session.map(&file.handle, .., MapFlags::empty())?;
    scene.expect_map(&mapping, &expected)?;
    scene.reads_directly(&mapping, 0, &file.content[..2 * PAGE as usize])?;
    ensure!(mapping.read_at(2 * PAGE, &mut [0]).is_err(), "bytes that the device does not have");
    drop(mapping);
    command(scene, "recover\n")?;
    scene.map_direct(&session, &file, MapFlags::WRITE).map(drop)
}

fn page_cache_dirty(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 4 * PAGE)?;
    scene.needs_window(&file)?;
    let session = scene.session()?;
    let place = device_offset(&file)? + PAGE;
    let writer = file.writer()?;
    let shared = view(&writer, Sharing::Shared)?;
    command(scene, &format!("write-error {place} 4096\n"))?;
    // The kernel may have written the page back (and lost it) before the map could: then there is nothing dirty.
    for attempt in 1.. {
        store(&shared, PAGE, &page_of(9))?;
        let mapping = session.map(&file.handle, .., MapFlags::empty())?;
        match scene.expect_map(&mapping, &[(0..4 * PAGE, Fallback(Reason::PageCacheDirty))]) {
            Err(error) if attempt == STORES => return Err(error),
            Err(_) => {}
            Ok(()) => break,
        }
    }
    command(scene, "recover\n")?;
    scene.map_direct(&session, &file, MapFlags::WRITE).map(drop)
}

fn reset_revokes(scene: &mut Scene<'_>) -> Result<()> {
    event_revokes(scene, "reset\n")
}

fn removal_revokes(scene: &mut Scene<'_>) -> Result<()> {
    event_revokes(scene, "removed\n")
}

fn event_revokes(scene: &mut Scene<'_>, event: &str) -> Result<()> {
    let file = scene.file("file", CHUNK)?;
    let witness = Witness::map(scene, &file, 0..CHUNK, MapFlags::WRITE)?;
    told_and_cut(scene, &witness, event)?;
    command(scene, "recover\n")?;
    let session = scene.session()?;
    scene.map_direct(&session, &file, MapFlags::WRITE).map(drop)
}

/// The command comes back at once: the device does not wait for those who lose it.
fn told_and_cut(scene: &Scene<'_>, witness: &Witness, event: &str) -> Result<()> {
    command(scene, event)?;
    let told = witness.expect_event(scene, Trigger::DeviceEvent)?;
    ensure!(!witness.is_current(0)?, "told before the sequence number changed");
    witness.expect_still_alive(scene)?;
    witness.acknowledge(&told)?;
    super::triggers::wait_until(|| witness.expect_cut().is_ok()).context("the window outlives its device")
}

fn media_error_revokes(scene: &mut Scene<'_>) -> Result<()> {
    let (bad, good) = (scene.file("bad", CHUNK)?, scene.file("good", CHUNK)?);
    let place = device_offset(&bad)? + 5 * PAGE;
    let loses = Witness::map(scene, &bad, 0..CHUNK, MapFlags::empty())?;
    let keeps = Witness::map(scene, &good, 0..CHUNK, MapFlags::empty())?;
    told_and_cut(scene, &loses, &format!("media-error {place} 4096\n"))?;
    keeps.expect_undisturbed(scene)?;
    command(scene, "recover\n")
}
