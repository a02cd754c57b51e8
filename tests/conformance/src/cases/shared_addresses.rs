//! Shared virtual memory: a file at one address for processor and device.

use anyhow::{Result, ensure};
use peerfs_abi::MapFlags;
use peerfs_client::cpu::{Device, DeviceConfig};
use peerfs_client::svm::{Direction, Placement, SharedRange};
use peerfs_client::{CpuMapping, Error, ImporterSpec};
use peerfs_sys::Reservation;

use crate::case::{Case, Setup};
use crate::scene::{CHUNK, PAGE, Scene, Subject, page_of, same_bytes};

/// What the device can address.
const VA_BITS: u32 = 40;
/// Addresses that nothing else uses.
const LOW: u64 = 0x35_0000_0000;

pub const CASES: &[Case] = &[
    Case::new(
        "svm-equal-addresses",
        "an address of a shared range means the same byte to processor and device, across revocations",
        Setup::USUAL,
        equal_addresses,
    ),
    Case::new(
        "svm-importer-width",
        "a shared range lies below the importer's last address, from whichever end it is searched",
        Setup::USUAL,
        importer_width,
    ),
    Case::new(
        "svm-overwrites-nothing",
        "a place is searched beside what is mapped for the processor or bound by the device; neither is replaced",
        Setup::USUAL,
        overwrites_nothing,
    ),
    Case::new("svm-address-space-full", "when no place is left, that is the answer, and nothing is mapped", Setup::USUAL, full),
];

fn device(scene: &Scene<'_>) -> Result<Device> {
    let session = peerfs_client::Session::open(&scene.directory, ImporterSpec { va_bits: VA_BITS, ..ImporterSpec::cpu() })?;
    Ok(Device::new(&session, DeviceConfig { va_bits: VA_BITS, ..DeviceConfig::default() }))
}

fn share(device: &Device, file: &Subject, flags: MapFlags, placement: Placement) -> Result<SharedRange, Error> {
    SharedRange::map(device, &file.path, 0..file.length(), flags, placement)
}

/// The device loads these bytes from an address of the shared range, all of them directly.
fn loads_directly(scene: &Scene<'_>, device: &Device, address: u64, expected: &[u8]) -> Result<()> {
    let before = device.stats().moved;
    let mut found = vec![0; expected.len()];
    ensure!(device.load(address, &mut found)? == expected.len(), "a short load");
    same_bytes(&found, expected)?;
    let after = device.stats().moved;
    ensure!(after.fallback == before.fallback && after.total() > before.total(), "loads went as {after:?} after {before:?}");
    scene.evidence.path(scene.direct_path());
    Ok(())
}

fn equal_addresses(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", CHUNK)?;
    scene.needs_window(&file)?;
    let device = device(scene)?;
    let shared = share(&device, &file, MapFlags::empty(), Placement::default())?;
    loads_directly(scene, &device, shared.address() + 5 * PAGE, file.page(5))?;
    for _ in 0..2 {
        ensure!(file.handle.revoke(..)?.grants > 0, "nothing was revoked");
        // The next access faults, and maps the same addresses again.
        loads_directly(scene, &device, shared.address() + 6 * PAGE, file.page(6))?;
    }
    let mut found = page_of(0);
    ensure!(shared.cpu().read(7 * PAGE as usize, &mut found).is_ok(), "the processor's load faults");
    same_bytes(&found, file.page(7))?;
    drop(shared);
    ensure!(device.bound().is_empty(), "the device keeps the addresses");

    let other = scene.file("other", CHUNK)?;
    let shared = share(&device, &other, MapFlags::WRITE, Placement::default())?;
    device.store(shared.address() + PAGE, &page_of(0x22))?;
    ensure!(shared.cpu().read(PAGE as usize, &mut found).is_ok(), "the processor's load faults");
    same_bytes(&found, &page_of(0x22))?;
    ensure!(shared.cpu().write(PAGE as usize, &page_of(0x33)).is_ok(), "the processor's store faults");
    ensure!(device.load(shared.address() + PAGE, &mut found)? == found.len(), "a short load");
    same_bytes(&found, &page_of(0x33))
}

fn importer_width(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", CHUNK)?;
    scene.needs_window(&file)?;
    let device = device(scene)?;
    for direction in [Direction::BottomUp, Direction::TopDown] {
        let shared = share(&device, &file, MapFlags::empty(), Placement { direction, ..Placement::default() })?;
        ensure!(shared.address() + CHUNK <= 1 << VA_BITS, "{shared:?} is beyond the importer");
        ensure!(shared.address().is_multiple_of(CHUNK), "{shared:?} is not aligned");
        loads_directly(scene, &device, shared.address(), file.page(0))?;
    }
    let beyond = Placement { low: 1 << VA_BITS, ..Placement::default() };
    let refused = share(&device, &file, MapFlags::empty(), beyond);
    ensure!(matches!(refused, Err(Error::AddressSpaceFull { .. })), "beyond the importer's addresses: {refused:?}");
    let refused = device.bind(1 << VA_BITS, &file.handle, 0, PAGE, MapFlags::empty());
    ensure!(matches!(refused, Err(Error::DeviceAddress { .. })), "an address it does not have: {refused:?}");
    Ok(())
}

fn overwrites_nothing(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 4 * PAGE)?;
    scene.needs_window(&file)?;
    let device = device(scene)?;
    // In the way of the processor, at both ends of the limits; in the way of the device only, between them.
    let low = LOW + (1 << 32);
    let limits = |direction| Placement { low, high: low + 16 * PAGE, alignment: PAGE, direction };
    let mut ends = Vec::new();
    for address in [low, low + 12 * PAGE] {
        let place = Reservation::at(address as usize, 4 * PAGE as usize)?;
        ends.push(CpuMapping::map_in(place, file.reader()?, 0, false)?);
    }
    device.bind(low + 4 * PAGE, &file.handle, 0, PAGE, MapFlags::empty())?;
    let shared = share(&device, &file, MapFlags::empty(), limits(Direction::BottomUp))?;
    ensure!(shared.address() == low + 5 * PAGE, "{shared:?} is not the lowest place");
    loads_directly(scene, &device, shared.address(), file.page(0))?;
    loads_directly(scene, &device, low + 4 * PAGE, file.page(0))?;
    drop(shared);
    let shared = share(&device, &file, MapFlags::empty(), limits(Direction::TopDown))?;
    ensure!(shared.address() == low + 8 * PAGE, "{shared:?} is not the highest place");
    for end in &ends {
        let mut found = page_of(0);
        ensure!(end.read(0, &mut found).is_ok(), "a mapping in the way is gone");
        same_bytes(&found, file.page(0))?;
    }
    Ok(())
}

fn full(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 4 * PAGE)?;
    scene.needs_window(&file)?;
    let device = device(scene)?;
    let low = LOW + (2 << 32);
    let placement = Placement { low, high: low + 11 * PAGE, alignment: PAGE, direction: Direction::BottomUp };
    let first = share(&device, &file, MapFlags::empty(), placement)?;
    let second = share(&device, &file, MapFlags::empty(), placement)?;
    let bound = device.bound().len();
    let refused = share(&device, &file, MapFlags::empty(), placement);
    ensure!(matches!(refused, Err(Error::AddressSpaceFull { .. })), "in a full space: {refused:?}");
    ensure!(device.bound().len() == bound, "the refused range is bound");
    let place = first.address();
    drop(first);
    let again = share(&device, &file, MapFlags::empty(), placement)?;
    ensure!(again.address() == place, "the place that was given back is not used again");
    loads_directly(scene, &device, again.address(), file.page(0))?;
    loads_directly(scene, &device, second.address(), file.page(0))
}
