//! Importers that misbehave: nobody else may notice, and they gain nothing.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use peerfs_abi::ioctl::{self, Unmap};
use peerfs_abi::{ABI_VERSION, MapFlags, REASON_SLOTS, Trigger};
use peerfs_client::cpu::{Device, DeviceConfig};

use super::triggers::wait_until;
use crate::case::{Case, Setup};
use crate::evidence::Way::Direct;
use crate::kit::raw::{RawSession, open_direct, request, segments};
use crate::puppet::Puppet;
use crate::scene::{CHUNK, PAGE, Scene, page_of};
use crate::witness::Witness;

/// Long enough to tell a wait from none, short enough to wait for.
const SHORT: Setup = Setup::with("deadline_ms=300");

pub const CASES: &[Case] = &[
    Case::new("importer-slow", "a slow importer that acknowledges in time is not cut early", Setup::PATIENT, slow),
    Case::new("importer-stopped", "a stopped process is cut at the deadline and its later accesses fault", Setup::USUAL, stopped),
    Case::new(
        "importer-false-acknowledgement",
        "an importer that acknowledges and goes on loses its memory all the same",
        Setup::PATIENT,
        false_acknowledgement,
    ),
    Case::new(
        "importer-early-acknowledgement",
        "an acknowledgement before the revocation counts for nothing",
        SHORT,
        early_acknowledgement,
    ),
    Case::new("importer-foreign-acknowledgement", "nobody can acknowledge for another importer", SHORT, foreign_acknowledgement),
    Case::new("importer-flood", "a flood of maps, acknowledgements and unread events delays nobody else", Setup::USUAL, flood),
    Case::new(
        "importer-lies",
        "impossible ranges, foreign mappings and absurd byte counts are refused or harmless",
        Setup::USUAL,
        lies,
    ),
    Case::new(
        "importer-limited-addresses",
        "an importer with few address bits is bound only where it can reach",
        Setup::USUAL,
        limited_addresses,
    ),
    Case::new(
        "importer-fault-model",
        "a device faults, maps, caches the translation, is shot down and faults again",
        Setup::USUAL,
        fault_model,
    ),
    Case::new(
        "importer-dies-with-session",
        "killed after opening a session, an importer leaves nothing",
        Setup::USUAL,
        dies_with_session,
    ),
    Case::new(
        "importer-dies-mapped",
        "killed after mapping, before taking the grant, an importer leaves nothing",
        Setup::USUAL,
        dies_mapped,
    ),
    Case::new("importer-dies-holding", "killed while it holds a window, an importer leaves nothing", Setup::USUAL, dies_holding),
    Case::new(
        "importer-dies-told",
        "killed when it is told of a revocation, an importer counts as having stopped",
        Setup::PATIENT,
        dies_told,
    ),
    Case::new(
        "importer-dies-acknowledged",
        "killed after its acknowledgement, an importer leaves nothing",
        Setup::PATIENT,
        dies_acknowledged,
    ),
    Case::new(
        "importer-dies-unmapped",
        "killed after giving its mapping back, an importer leaves nothing",
        Setup::USUAL,
        dies_unmapped,
    ),
];

fn slow(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", CHUNK)?;
    let witness = Witness::map(scene, &file, 0..CHUNK, MapFlags::WRITE)?;
    std::thread::scope(|scope| {
        let revoker = scope.spawn(|| file.handle.revoke(..));
        let event = witness.expect_event(scene, Trigger::Administrator)?;
        for round in 0..8_u8 {
            witness.store(0, &page_of(round))?;
            scene.round_trips(10)?;
        }
        witness.acknowledge(&event)?;
        let revoked = revoker.join().ok().context("no panic")??;
        ensure!((revoked.grants, revoked.enforced) == (1, 0), "{revoked:?}");
        let mut found = page_of(0);
        file.handle.read_at(0, &mut found)?;
        ensure!(found == page_of(7), "what it drained is lost");
        Ok(())
    })
}

/// A process that holds all of a file by hand.
fn holder(scene: &Scene<'_>, file: &crate::scene::Subject) -> Result<Puppet> {
    scene.needs_window(file)?;
    let puppet = Puppet::start(scene, 0)?;
    puppet.obey(&format!("open write {}", file.path.display()))?;
    puppet.obey(&format!("session {}", scene.directory.display()))?;
    puppet.expect_map(scene, 0..file.length(), MapFlags::WRITE, &[(0..file.length(), Direct)])?;
    puppet.obey("take")?;
    Ok(puppet)
}

fn stopped(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", CHUNK)?;
    let mut puppet = holder(scene, &file)?;
    let pid = Pid::from_raw(puppet.pid().cast_signed());
    puppet.send("spin")?;
    ensure!(puppet.hear()? == "spinning", "it does not start");
    kill(pid, Signal::SIGSTOP)?;
    // It comes back at all: nothing but the deadline ends this.
    let revoked = file.handle.revoke(..)?;
    ensure!((revoked.grants, revoked.enforced) == (1, 1), "{revoked:?}");
    kill(pid, Signal::SIGCONT)?;
    let status = puppet.end()?;
    let signal = std::os::unix::process::ExitStatusExt::signal(&status);
    ensure!(signal == Some(Signal::SIGBUS as i32), "it ended with {status} instead of SIGBUS");
    file.expect_content()
}

fn false_acknowledgement(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", CHUNK)?;
    let witness = Witness::map(scene, &file, 0..CHUNK, MapFlags::WRITE)?;
    let revoked = std::thread::scope(|scope| -> Result<_> {
        let revoker = scope.spawn(|| file.handle.revoke(..));
        let event = witness.expect_event(scene, Trigger::Administrator)?;
        witness.acknowledge(&event)?;
        // It goes on storing. What it stores now may or may not be kept, but the end comes.
        wait_until(|| witness.store(PAGE, &page_of(0xEE)).is_err()).context("it stores for ever")?;
        revoker.join().ok().context("no panic")?.map_err(Into::into)
    })?;
    ensure!((revoked.grants, revoked.enforced) == (1, 0), "{revoked:?}");
    witness.expect_cut()?;
    file.handle.write_at(PAGE, file.page(1))?;
    ensure!(witness.store(PAGE, &page_of(0xEE)).is_err() && witness.load(0, 1).is_err(), "it touches the memory after the cut");
    file.expect_content()
}

fn early_acknowledgement(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", CHUNK)?;
    let witness = Witness::map(scene, &file, 0..CHUNK, MapFlags::WRITE)?;
    witness.session.acknowledge(witness.held[0].segment.grant_id)?;
    witness.expect_undisturbed(scene)?;
    let revoked = file.handle.revoke(..)?;
    ensure!((revoked.grants, revoked.enforced) == (1, 1), "{revoked:?}");
    Ok(())
}

fn foreign_acknowledgement(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", CHUNK)?;
    let witness = Witness::map(scene, &file, 0..CHUNK, MapFlags::WRITE)?;
    let liar = RawSession::open(&scene.directory)?;
    std::thread::scope(|scope| {
        let revoker = scope.spawn(|| file.handle.revoke(..));
        let event = witness.expect_event(scene, Trigger::Administrator)?;
        liar.acknowledge(event.grant_id)?;
        let revoked = revoker.join().ok().context("no panic")??;
        ensure!((revoked.grants, revoked.enforced) == (1, 1), "another session's acknowledgement counts: {revoked:?}");
        witness.expect_cut()
    })
}

fn flood(scene: &mut Scene<'_>) -> Result<()> {
    const FLOOD: usize = 500;
    let (file, other) = (scene.file("file", CHUNK)?, scene.file("other", CHUNK)?);
    let handle = open_direct(&file.path, true)?;
    let flooder = RawSession::open(&scene.directory)?;
    let mut random = scene.random();
    std::thread::scope(|scope| {
        let flooding = scope.spawn(|| -> Result<()> {
            for _ in 0..FLOOD {
                let length = PAGE * (1 + random.below(512));
                let answer =
                    flooder.map(&handle, 0, length, if random.one_in(2) { MapFlags::WRITE } else { MapFlags::empty() })?;
                ensure!(answer.segment_count > 0, "an empty answer");
                flooder.acknowledge(random.bits() >> 3)?;
                // Its events are never read.
                flooder.unmap(answer.mapping_id)?;
            }
            Ok(())
        });
        let session = scene.session()?;
        for _ in 0..20 {
            let mapping = scene.map_direct(&session, &other, MapFlags::WRITE)?;
            scene.reads_directly(&mapping, 0, &other.content)?;
            ensure!(other.handle.revoke(..)?.enforced == 0, "a good importer was cut");
        }
        flooding.join().ok().context("no panic")?
    })?;
    file.expect_content()
}

fn lies(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 2 * PAGE)?;
    let handle = open_direct(&file.path, true)?;
    let (liar, victim) = (RawSession::open(&scene.directory)?, Witness::map(scene, &file, 0..2 * PAGE, MapFlags::WRITE)?);
    let code = |result: std::io::Result<i32>| result.err().and_then(|error| error.raw_os_error());
    for (offset, length) in [(u64::MAX - 10, 100), (u64::MAX, 1), (1, u64::MAX)] {
        let mut argument = request(&handle, offset, length, MapFlags::empty());
        argument.context_id = liar.context.context_id;
        let refused = code(peerfs_sys::ioctl(&handle, ioctl::MAP, &mut *argument));
        ensure!(refused == Some(libc::EINVAL), "{offset}+{length} answers {refused:?}");
    }
    let mut foreign = request(&handle, 0, PAGE, MapFlags::empty());
    (foreign.context_id, foreign.mapping_id) = (liar.context.context_id, victim.answer.mapping_id);
    ensure!(code(peerfs_sys::ioctl(&handle, ioctl::MAP, &mut *foreign)) == Some(libc::EBADF), "it adds to a foreign mapping");
    let foreign = liar.unmap(victim.answer.mapping_id).err().and_then(|error| error.raw_os_error());
    ensure!(foreign == Some(libc::EBADF), "it ends a foreign mapping");
    let own = liar.map(&handle, 0, PAGE, MapFlags::WRITE)?;
    ensure!(segments(&own).iter().all(|segment| segment.grant_id != victim.held[0].segment.grant_id), "a foreign grant");
    for _ in 0..3 {
        let mut absurd = Unmap {
            abi_version: ABI_VERSION,
            report_only: 1,
            mapping_id: own.mapping_id,
            bytes_direct_window: u64::MAX,
            bytes_direct_bar: u64::MAX,
            bytes_fallback: [u64::MAX; REASON_SLOTS],
        };
        peerfs_sys::ioctl(&liar.session, ioctl::UNMAP, &mut absurd)?;
    }
    ensure!(scene.mount.alive(), "the server died of a sum");
    victim.expect_undisturbed(scene)
}

fn limited_addresses(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 4 * PAGE)?;
    scene.needs_window(&file)?;
    let session = scene.session()?;
    let device = Device::new(&session, DeviceConfig { va_bits: 32, ..DeviceConfig::default() });
    ensure!(device.bind(1 << 32, &file.handle, 0, PAGE, MapFlags::empty()).is_err(), "bound beyond 32 bits");
    ensure!(device.bind((1 << 32) - PAGE, &file.handle, 0, 2 * PAGE, MapFlags::empty()).is_err(), "bound across 32 bits");
    device.bind((1 << 32) - 4 * PAGE, &file.handle, 0, 4 * PAGE, MapFlags::empty())?;
    let mut found = vec![0; 4 * PAGE as usize];
    ensure!(device.load((1 << 32) - 4 * PAGE, &mut found)? == found.len(), "a short load");
    crate::scene::same_bytes(&found, &file.content)?;
    scene.evidence.path(scene.direct_path());
    ensure!(device.stats().moved.fallback == 0, "{:?}", device.stats());
    Ok(())
}

fn fault_model(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 4 * PAGE)?;
    scene.needs_window(&file)?;
    let session = scene.session()?;
    let device = Device::new(&session, DeviceConfig::default());
    device.bind(0x1000, &file.handle, 0, 4 * PAGE, MapFlags::WRITE)?;
    let load = || -> Result<()> {
        let mut found = vec![0; 4 * PAGE as usize];
        device.load(0x1000, &mut found)?;
        crate::scene::same_bytes(&found, &file.content)
    };
    load()?;
    let first = device.stats();
    ensure!(first.faults > 0 && first.moved.fallback == 0, "{first:?}");
    load()?;
    ensure!(device.stats().faults == first.faults, "a mapped page faults again");
    ensure!(file.handle.revoke(..)?.enforced == 0, "the device does not acknowledge");
    let shot = device.stats();
    ensure!(shot.shootdowns > first.shootdowns, "no shoot-down: {shot:?}");
    load()?;
    ensure!(device.stats().faults > shot.faults && device.stats().moved.fallback == 0, "{:?}", device.stats());
    scene.evidence.path(scene.direct_path());
    scene.evidence.trigger(Trigger::Administrator);
    Ok(())
}

/// After its death nothing is left of it, and another importer maps directly.
fn left_nothing(scene: &Scene<'_>, file: &crate::scene::Subject, mut puppet: Puppet) -> Result<()> {
    puppet.kill()?;
    let empty = || scene.mount.info().is_ok_and(|info| info["mappings"] == 0 && info["windows"] == 0 && info["sessions"] == 0);
    wait_until(empty).context("something is left of it")?;
    let session = scene.session()?;
    let mapping = scene.map_direct(&session, file, MapFlags::WRITE)?;
    scene.reads_directly(&mapping, 0, &file.content)
}

fn dies_with_session(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", CHUNK)?;
    let puppet = Puppet::start(scene, 0)?;
    puppet.obey(&format!("session {}", scene.directory.display()))?;
    left_nothing(scene, &file, puppet)
}

fn dies_mapped(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", CHUNK)?;
    let puppet = Puppet::start(scene, 0)?;
    puppet.obey(&format!("open write {}", file.path.display()))?;
    puppet.obey(&format!("session {}", scene.directory.display()))?;
    puppet.expect_map(scene, 0..CHUNK, MapFlags::WRITE, &[(0..CHUNK, Direct)])?;
    left_nothing(scene, &file, puppet)
}

fn dies_holding(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", CHUNK)?;
    let puppet = holder(scene, &file)?;
    left_nothing(scene, &file, puppet)
}

fn dies_told(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", CHUNK)?;
    let mut puppet = holder(scene, &file)?;
    std::thread::scope(|scope| {
        let revoker = scope.spawn(|| file.handle.revoke(..));
        let told = puppet.obey("event")?;
        ensure!(told.starts_with(Trigger::Administrator.name()), "told of {told}");
        scene.evidence.trigger(Trigger::Administrator);
        puppet.kill()?;
        let revoked = revoker.join().ok().context("no panic")??;
        ensure!((revoked.grants, revoked.enforced) == (1, 0), "{revoked:?}");
        Ok(())
    })?;
    left_nothing(scene, &file, puppet)
}

fn dies_acknowledged(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", CHUNK)?;
    let puppet = holder(scene, &file)?;
    std::thread::scope(|scope| {
        let revoker = scope.spawn(|| file.handle.revoke(..));
        let told = puppet.obey("event")?;
        let grant = told.split(' ').nth(1).context("an event names its grant")?;
        puppet.obey(&format!("ack {grant}"))?;
        let revoked = revoker.join().ok().context("no panic")??;
        ensure!((revoked.grants, revoked.enforced) == (1, 0), "{revoked:?}");
        Ok(())
    })?;
    left_nothing(scene, &file, puppet)
}

fn dies_unmapped(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", CHUNK)?;
    let puppet = holder(scene, &file)?;
    puppet.obey("unmap own")?;
    left_nothing(scene, &file, puppet)
}
