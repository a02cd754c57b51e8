//! Leases by the driver itself: what the filesystem would not let anybody try, or what it does too quickly to be caught.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use peerfs_blockdev::nvme::{Direction, DmaEngine, TransferError};
use peerfs_blockdev::{BlockDeviceExt, DeviceSpec, OpenMode, Run, WindowSpec};

use crate::lab::guest::{Guest, PORT_A, PORT_B, PORT_SLOW, contents};

pub fn read_lease(guest: &mut Guest<'_>) -> Result<()> {
    const LENGTH: usize = 64 << 10;
    guest.bind(PORT_A)?;
    guest.bind(PORT_B)?;
    let seed = guest.seed();
    let spec: DeviceSpec = PORT_A.part("pmr").parse()?;
    let opened = spec.open(None, OpenMode::ReadWrite, Duration::from_secs(10))?;
    let engine = DmaEngine::open(PORT_B.address.parse()?, 1)?;
    // At the end of both media: other cases have volumes on them.
    let home = opened.device.info().size_bytes - LENGTH as u64;
    let (source, target) = (engine.blocks() - 1024, engine.blocks() - 512);
    opened.device.write_at(home, &contents(seed, LENGTH))?;
    engine.write(source, &contents(seed + 1, LENGTH))?;
    let aperture = opened.aperture.context("the region is an aperture")?;
    let length = LENGTH as u64;
    let run = Run { window_offset: 0, device_offset: home, length };
    let window = aperture.open_window(WindowSpec { owner: 1, length, runs: vec![run], valid_length: length })?;
    let lease = engine.lease(&engine.queue()?, window.clone(), false)?;
    // Whatever the controller says of it.
    let said = lease.start(Direction::ToWindow, source, 0, length)?.finish();
    let mut found = vec![0; LENGTH];
    window.peer_read(0, &mut found)?;
    ensure!(found == contents(seed, LENGTH), "a controller wrote over a lease for reading");
    lease.start(Direction::FromWindow, target, 0, length)?.finish()?;
    let mut read = vec![0; LENGTH];
    for (block, seed) in [(source, seed + 1), (target, seed)] {
        engine.read(block, &mut read)?;
        ensure!(read == contents(seed, LENGTH), "block {block} has {:x?}, not {:x?}", &read[..16], &contents(seed, 16));
    }
    guest.note(format!("a write over a lease for reading was stopped; the controller calls it {said:?}"))
}

pub fn drained(guest: &mut Guest<'_>) -> Result<()> {
    const LENGTH: usize = 512 << 10;
    guest.bind(PORT_A)?;
    guest.bind(PORT_SLOW)?;
    let seed = guest.seed();
    let spec: DeviceSpec = PORT_A.part("pmr").parse()?;
    let opened = spec.open(None, OpenMode::ReadWrite, Duration::from_secs(10))?;
    let engine = DmaEngine::open(PORT_SLOW.address.parse()?, 1)?;
    let length = LENGTH as u64;
    let home = opened.device.info().size_bytes - length;
    let source = engine.blocks() - 1024;
    engine.write(source, &contents(seed + 1, LENGTH))?;
    let aperture = opened.aperture.context("the region is an aperture")?;
    let run = Run { window_offset: 0, device_offset: home, length };
    let window = aperture.open_window(WindowSpec { owner: 1, length, runs: vec![run], valid_length: length })?;
    window.set_writable();
    let lease = engine.lease(&engine.queue()?, window.clone(), true)?;
    // Its medium takes a quarter of a second for each.
    let transfers = [0, 1].map(|_| lease.start(Direction::ToWindow, source, 0, length));
    window.cut();
    // Whoever has the blocks next.
    let next = contents(seed + 2, LENGTH);
    opened.device.write_at(home, &next)?;
    for transfer in transfers {
        ensure!(matches!(transfer?.finish(), Err(TransferError::Revoked)), "a transfer that was cut off counts");
    }
    let mut found = vec![0; LENGTH];
    opened.device.read_at(home, &mut found)?;
    ensure!(found == next, "a transfer landed after the cut");
    Ok(())
}
