//! Controllers that are reset, switched off or pulled out while one moves bytes to or from another.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use peerfs_sys::Bar;
use serde_json::Value;

use super::{LBA, MIB, Scene, refs, run, until_in_flight};
use crate::lab::channel::Namespace;
use crate::lab::guest::{Beside, Controller, Guest, PORT_A, PORT_B, PORT_SLOW, contents, set, text, until_within};

/// PMRCTL, NVMe base specification 2.1, section 3.1.4.21.
const PMRCTL: u64 = 0xE04;
/// Bytes that are under way when something happens.
const LENGTH: u64 = 4 * MIB;
/// A removal or a recovery that takes longer hangs.
const HANG: Duration = Duration::from_secs(60);

/// What happens to a controller.
type Blow = fn() -> Result<()>;

pub fn reset(guest: &mut Guest<'_>) -> Result<()> {
    let blows: [(&str, Blow); 3] = [
        ("a reset of the importer", || set(PORT_SLOW.sysfs("reset"), "1")),
        ("a reset of the storage", || set(PORT_A.sysfs("reset"), "1")),
        ("the PMR switched off", || {
            let bar = Bar::from_sysfs(PORT_A.sysfs("resource0")).context("mapping the registers")?;
            bar.write_u32(PMRCTL, 0).map_err(|error| anyhow!("PMRCTL: {error}"))
        }),
    ];
    for (number, (what, blow)) in (0..).zip(blows) {
        struck(guest, number, blow).context(what)?;
    }
    Ok(())
}

fn struck(guest: &mut Guest<'_>, number: u64, blow: Blow) -> Result<()> {
    let scene = Scene::new(guest, PORT_A, "pmr", PORT_SLOW)?;
    let seed = guest.seed() + number;
    let path = scene.file("file", seed, LENGTH)?;
    let copying = guest.start(&refs(&scene.copy_out(&path, 0)))?;
    until_in_flight(&scene, 2)?;
    blow()?;
    let said = match copying.end()? {
        Ok(report) => {
            // What it calls a success is one.
            guest.holds(Namespace::Slow, 0, LENGTH, seed)?;
            serde_json::from_str::<Value>(&report)?.to_string()
        }
        Err(error) => error,
    };
    guest.peerfs(&["info", &text(&scene.point)]).context("the server afterwards")?;
    let (place, part) = (32 * MIB, 256 << 10);
    let again = [scene.copy_out(&path, place / LBA), vec!["--length".into(), part.to_string()]].concat();
    until_within(HANG, "a copy succeeds again", || {
        let report = run(guest, &again).ok()?;
        (report["bytes"] == part).then_some(())
    })?;
    guest.holds(Namespace::Slow, place, part, seed)?;
    // The volume may have become read-only, and says so when it ends.
    if guest.umount(&scene.point).is_err() {
        guest.umount_by_force(&scene.point)?;
    }
    let point = guest.mount(&PORT_A.part("pmr")).context("mounting afterwards")?;
    ensure!(fs::read(point.join("file"))? == contents(seed, LENGTH as usize), "what was synced is lost");
    guest.note(said.trim().to_owned())?;
    guest.umount(&point)
}

pub fn removal(guest: &mut Guest<'_>) -> Result<()> {
    importer_goes(guest).context("the importer is pulled out")?;
    storage_goes(guest).context("the storage is pulled out")
}

fn pull_out(guest: &mut Guest<'_>, controller: Controller, namespace: Namespace) -> Result<()> {
    guest.unplug(namespace)?;
    until_within(HANG, "the kernel removes the controller", || (!controller.sysfs("").exists()).then_some(()))?;
    guest.forget(controller);
    Ok(())
}

/// The emulator does not survive that one of its throttled media goes while it is in use, so this is the other.
fn importer_goes(guest: &mut Guest<'_>) -> Result<()> {
    let scene = Scene::new(guest, PORT_A, "pmr", PORT_B)?;
    let seed = guest.seed();
    let path = scene.file("file", seed, 32 * MIB)?;
    // Behind the volume that another case leaves there.
    let arguments = scene.copy_out(&path, 200 * MIB / LBA);
    // One copy after the other, until one fails.
    let copying = std::thread::spawn(move || {
        loop {
            match Beside::start(&refs(&arguments)).and_then(Beside::end) {
                Ok(Ok(_)) => {}
                Ok(Err(said)) => return Ok(said),
                Err(error) => return Err(error),
            }
        }
    });
    until_in_flight(&scene, 1)?;
    pull_out(guest, PORT_B, Namespace::B)?;
    let said = copying.join().map_err(|_| anyhow!("the thread that copies panicked"))??;
    // Everything else of the mount goes on.
    let other = scene.file("other", seed + 1, LENGTH)?;
    ensure!(fs::read(&path)? == contents(seed, 32 * MIB as usize), "the file is not what it was");
    ensure!(fs::read(&other)? == contents(seed + 1, LENGTH as usize), "a new file is not what was written");
    let again = guest.refused("peerfs", &refs(&scene.copy_out(&path, 0)))?;
    guest.note(format!("importer pulled out; the copy: {}; the next: {}", said.trim(), again.trim()))?;
    guest.umount(&scene.point)
}

fn storage_goes(guest: &mut Guest<'_>) -> Result<()> {
    let scene = Scene::new(guest, PORT_A, "pmr", PORT_SLOW)?;
    let path = scene.file("file", guest.seed(), LENGTH)?;
    let copying = guest.start(&refs(&scene.copy_out(&path, 0)))?;
    until_in_flight(&scene, 2)?;
    pull_out(guest, PORT_A, Namespace::A)?;
    let said = copying.end()?.expect_err("half of the file is gone with its device");
    let read = fs::read(&path).err().context("a file of a device that is gone is read")?;
    guest.peerfs(&["info", &text(&scene.point)]).context("the server afterwards")?;
    guest.note(format!("storage pulled out; the copy: {}; reading: {read}", said.trim()))?;
    guest.umount_by_force(&scene.point)
}
