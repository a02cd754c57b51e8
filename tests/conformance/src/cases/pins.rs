//! Pins: mappings that live as long as anybody holds their memory.

use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use peerfs_abi::{ImporterFlags, MapFlags, Reason};
use peerfs_client::{Mapping, Session};
use peerfs_sys::{FileView, Sharing, Window};

use super::reasons_device::limited;
use super::triggers::wait_until;
use crate::backend::ApertureSize;
use crate::case::{Case, Setup};
use crate::evidence::Way::{Direct, Fallback};
use crate::kit::raw::readable;
use crate::scene::{PAGE, Scene, Subject, cached_pages, cpu_reads, page_of, same_bytes};

/// Room for two pages of pins.
const CRAMPED: Setup = Setup::with("pin_quota=8K").aperture(ApertureSize::Usual);
pub const WRITE_PIN: MapFlags = MapFlags::PIN.union(MapFlags::WRITE);

pub const CASES: &[Case] = &[
    Case::new("flag-pin", "PIN gives memory of its own, direct, and says what it is", Setup::USUAL, pinned),
    Case::new("pin-static-importer", "a static importer may hold pins", Setup::USUAL, static_importer)
        .refusing(Reason::NotifierRequired),
    Case::new(
        "reason-cpu-writer",
        "a WRITE pin needs that no cached handle is open, a read pin that no cached writer is, else CpuWriter",
        Setup::USUAL,
        cpu_writer,
    )
    .refusing(Reason::CpuWriter),
    Case::new(
        "reason-pin-quota",
        "what exceeds the quota of pins falls back with PinQuota, and is granted when another pin ends",
        CRAMPED,
        quota,
    )
    .refusing(Reason::PinQuota),
    Case::new(
        "pin-write-opens-direct",
        "while a WRITE pin lives every open is direct and a shared mmap answers ENODEV",
        Setup::USUAL,
        opens_direct,
    ),
    Case::new(
        "pin-write-open-stays-direct",
        "a handle that was opened beside a WRITE pin stays direct as long as it is open, also after the pin",
        Setup::USUAL,
        open_stays_direct,
    ),
    Case::new(
        "pin-write-direct-handle",
        "reads and writes of direct handles and a WRITE pin see the same bytes",
        Setup::USUAL,
        direct_handle,
    ),
    Case::new(
        "pin-not-revoked",
        "an administrator's revocation, a truncate and a write leave a pin alone and do not wait for it",
        Setup::PATIENT,
        not_revoked,
    ),
    Case::new("pin-forced", "the owner of the mount takes a pin back by force: its memory is cut", Setup::USUAL, forced),
    Case::new(
        "pin-lives-with-holders",
        "a pin outlives its mapping, session and descriptors while an mmap of it is left",
        Setup::USUAL,
        lives_with_holders,
    ),
    Case::new(
        "pin-quarantine",
        "blocks that are truncated under a pin are not used again before its end",
        Setup::USUAL,
        quarantine,
    ),
];

pub fn pin(scene: &Scene<'_>, session: &Session, file: &Subject, flags: MapFlags) -> Result<Mapping> {
    // The last cached handle of the case may still be on its way to the server.
    let mapping = std::cell::RefCell::new(None);
    wait_until(|| {
        let made = session.map(&file.handle, .., flags);
        let direct = made.as_ref().is_ok_and(|made| made.segments().iter().all(|segment| segment.reason == scene.refusal()));
        *mapping.borrow_mut() = Some(made);
        direct
    })
    .with_context(|| {
        format!("no pin: {:?}", mapping.borrow().as_ref().map(|made| made.as_ref().map(|made| made.segments().to_vec())))
    })?;
    let mapping = mapping.into_inner().context("just made")??;
    scene.expect_map(&mapping, &[(0..file.length(), Direct)])?;
    if !scene.grants() {
        scene.expect_no_window(&mapping, &file.handle)?;
    }
    Ok(mapping)
}

/// A descriptor of the pin's memory, and an mmap of it.
pub fn memory(mapping: &Mapping, writable: bool) -> Result<(OwnedFd, Window)> {
    let pins = mapping.pins();
    ensure!(pins.len() == 1, "{} pins", pins.len());
    let fd = pins[0].fd.try_clone_to_owned()?;
    let window = Window::map(&fd, pins[0].length as usize, writable)?;
    Ok((fd, window))
}

/// No pin is left on the mount.
pub fn none_left(scene: &Scene<'_>) -> Result<()> {
    wait_until(|| scene.mount.info().is_ok_and(|info| info["pins"] == 0)).context("a pin outlives its holders")
}

/// So much of the volume is neither a file's nor free: an aperture that is no home of blocks would not show by its bytes
/// that they are used again.
pub fn expect_quarantined(scene: &Scene<'_>, bytes: u64) -> Result<()> {
    // What is freed comes back with the next commit.
    std::fs::File::open(scene.mount.path())?.sync_all()?;
    let quarantined = || Ok::<_, anyhow::Error>(scene.mount.info()?["volume"]["quarantined_bytes"].clone());
    wait_until(|| quarantined().is_ok_and(|found| found == bytes))
        .with_context(|| format!("{:?} bytes are in quarantine instead of {bytes}", quarantined()))
}

fn pinned(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 4 * PAGE)?;
    let session = scene.session()?;
    let mapping = pin(scene, &session, &file, MapFlags::PIN)?;
    let [kind] = mapping.pins().iter().map(|pin| pin.kind.name()).collect::<Vec<_>>()[..] else { anyhow::bail!("not one pin") };
    ensure!(kind == "memfd", "a read pin is a {kind}");
    ensure!(mapping.segments().iter().all(|segment| segment.pin.is_some()), "{:?}", mapping.segments());
    scene.reads_directly(&mapping, 0, &file.content)?;
    ensure!(scene.mount.info()?["pins"] == 1, "the mount does not count it");
    drop(mapping);
    none_left(scene)
}

fn static_importer(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 4 * PAGE)?;
    let session = limited(scene, ImporterFlags::WRITE)?;
    scene.expect_map(&session.map(&file.handle, .., MapFlags::empty())?, &[(0..4 * PAGE, Fallback(Reason::NotifierRequired))])?;
    let mapping = pin(scene, &session, &file, WRITE_PIN)?;
    scene.writes_directly(&mapping, PAGE, &page_of(0x22))?;
    drop(mapping);
    none_left(scene)?;
    cpu_reads(&file.reader()?, PAGE, &page_of(0x22))
}

fn cpu_writer(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 4 * PAGE)?;
    let session = scene.session()?;
    let refused = [(0..4 * PAGE, Fallback(Reason::CpuWriter))];
    let reader = file.reader()?;
    scene.expect_map(&session.map(&file.handle, .., WRITE_PIN)?, &refused)?;
    scene.expect_table(&session.query(&file.handle, .., WRITE_PIN)?, &refused)?;
    drop(pin(scene, &session, &file, MapFlags::PIN)?);
    none_left(scene)?;
    let writer = file.writer()?;
    scene.expect_map(&session.map(&file.handle, .., MapFlags::PIN)?, &refused)?;
    // Without PIN it can be revoked, so it is granted.
    scene.map_direct(&session, &file, MapFlags::WRITE)?;
    drop((reader, writer));
    none_left(scene)?;
    drop(pin(scene, &session, &file, WRITE_PIN)?);
    none_left(scene)
}

fn quota(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 4 * PAGE)?;
    let session = scene.session()?;
    let mapping = session.map(&file.handle, .., MapFlags::PIN)?;
    scene.expect_map(&mapping, &[(0..2 * PAGE, Direct), (2 * PAGE..4 * PAGE, Fallback(Reason::PinQuota))])?;
    scene.reads_by_fallback(&mapping, 2 * PAGE, &file.content[2 * PAGE as usize..])?;
    let other = scene.file("other", PAGE)?;
    scene.expect_map(&session.map(&other.handle, .., MapFlags::PIN)?, &[(0..PAGE, Fallback(Reason::PinQuota))])?;
    scene.expect_map(&session.map(&other.handle, .., MapFlags::empty())?, &[(0..PAGE, Direct)])?;
    drop(mapping);
    none_left(scene)?;
    drop(pin(scene, &session, &other, MapFlags::PIN)?);
    none_left(scene)
}

fn opens_direct(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 4 * PAGE)?;
    let session = scene.session()?;
    let mapping = pin(scene, &session, &file, WRITE_PIN)?;
    for handle in [file.reader()?, file.writer()?] {
        cpu_reads(&handle, 0, &file.content)?;
        ensure!(cached_pages(&handle)? == 0, "pages are cached beside a WRITE pin");
        let refused = FileView::map(&handle, PAGE as usize, Sharing::Shared, false).err().and_then(|error| error.raw_os_error());
        ensure!(refused == Some(libc::ENODEV), "a shared mmap answers {refused:?}");
    }
    scene.writes_directly(&mapping, 0, &page_of(0x22))?;
    cpu_reads(&file.reader()?, 0, &page_of(0x22))?;
    drop(mapping);
    none_left(scene)?;
    let reader = file.reader()?;
    cpu_reads(&reader, 0, &page_of(0x22))?;
    ensure!(cached_pages(&reader)? > 0, "opens stay direct after the pin");
    Ok(())
}

fn open_stays_direct(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 4 * PAGE)?;
    let session = scene.session()?;
    let mapping = pin(scene, &session, &file, WRITE_PIN)?;
    let handles = [file.reader()?, file.writer()?];
    drop(mapping);
    none_left(scene)?;
    for handle in &handles {
        cpu_reads(handle, 0, &file.content)?;
        ensure!(cached_pages(handle)? == 0, "it reads through the cache after the pin");
        let refused = FileView::map(handle, PAGE as usize, Sharing::Shared, false).err().and_then(|error| error.raw_os_error());
        ensure!(refused == Some(libc::ENODEV), "after the pin a shared mmap of it answers {refused:?}");
    }
    // Since they are no cached handles they are in nobody's way, and a new open is as always.
    drop(pin(scene, &session, &file, WRITE_PIN)?);
    none_left(scene)?;
    let reader = file.reader()?;
    ensure!(FileView::map(&reader, PAGE as usize, Sharing::Shared, false).is_ok(), "opens stay direct after the pin");
    Ok(())
}

fn direct_handle(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 4 * PAGE)?;
    let session = scene.session()?;
    let mapping = pin(scene, &session, &file, WRITE_PIN)?;
    scene.writes_directly(&mapping, PAGE, &page_of(0x22))?;
    let mut found = page_of(0);
    file.handle.read_at(PAGE, &mut found)?;
    same_bytes(&found, &page_of(0x22))?;
    file.handle.write_at(2 * PAGE, &page_of(0x33))?;
    scene.reads_directly(&mapping, 2 * PAGE, &page_of(0x33))?;
    drop(mapping);
    none_left(scene)
}

fn not_revoked(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 4 * PAGE)?;
    let session = scene.session()?;
    let mapping = pin(scene, &session, &file, MapFlags::PIN)?;
    let (_fd, window) = memory(&mapping, false)?;
    let revoked = file.handle.revoke(..)?;
    ensure!((revoked.grants, revoked.pins_cut, revoked.pins_detached) == (0, 0, 0), "{revoked:?}");
    file.handle.write_at(0, &page_of(0x22))?;
    scene.reads_directly(&mapping, 0, &page_of(0x22))?;
    // Nothing waits: the deadline is far away, and nobody acknowledges.
    file.open(libc::O_DIRECT | libc::O_NONBLOCK)?.set_len(PAGE)?;
    ensure!(readable(&window) == window.length() / 4096, "the pin was cut");
    drop((mapping, window, _fd));
    none_left(scene)
}

fn forced(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 4 * PAGE)?;
    let session = scene.session()?;
    let mapping = pin(scene, &session, &file, MapFlags::PIN)?;
    let (fd, window) = memory(&mapping, false)?;
    let revoked = file.handle.revoke_pins(..)?;
    ensure!((revoked.pins_cut, revoked.pins_detached) == (1, 0), "{revoked:?}");
    ensure!(readable(&window) == 0, "the pin's memory outlives the cut");
    scene.reads_by_fallback(&mapping, 0, &file.content)?;
    drop((mapping, fd, window));
    none_left(scene)?;
    scene.map_direct(&session, &file, MapFlags::WRITE).map(drop)
}

fn lives_with_holders(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 4 * PAGE)?;
    let window = {
        let session = scene.session()?;
        let mapping = pin(scene, &session, &file, WRITE_PIN)?;
        let (_, window) = memory(&mapping, true)?;
        window
    };
    // Mapping, session and every descriptor are gone. The server looks for holders at an interval.
    wait_until(|| scene.mount.info().is_ok_and(|info| info["sessions"] == 0 && info["mappings"] == 0))?;
    scene.round_trips(2000)?;
    ensure!(scene.mount.info()?["pins"] == 1, "the pin ends although its memory is mapped");
    window.write(0, &page_of(0x44)).ok().context("the pin's memory is gone")?;
    let mut found = page_of(0);
    file.handle.read_at(0, &mut found)?;
    same_bytes(&found, &page_of(0x44))?;
    drop(window);
    none_left(scene)?;
    cpu_reads(&file.reader()?, 0, &page_of(0x44))
}

fn quarantine(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 64 * PAGE)?;
    let session = scene.session()?;
    let mapping = pin(scene, &session, &file, WRITE_PIN)?;
    let (fd, window) = memory(&mapping, true)?;
    file.open(libc::O_DIRECT | libc::O_NONBLOCK)?.set_len(0)?;
    expect_quarantined(scene, 64 * PAGE)?;
    // Whatever is written next must not be what the pin reaches.
    let others: Vec<Subject> = (0..8).map(|number| scene.file(&format!("other-{number}"), 64 * PAGE)).collect::<Result<_>>()?;
    window.write(0, &vec![0xEE; window.length()]).ok().context("the pin was cut")?;
    expect_quarantined(scene, 64 * PAGE)?;
    drop((mapping, fd, window));
    none_left(scene)?;
    expect_quarantined(scene, 0)?;
    for other in &others {
        other.expect_content().context("a block was used again under the pin")?;
        let direct = other.open(libc::O_DIRECT | libc::O_NONBLOCK)?;
        let mut found = vec![0; other.content.len()];
        direct.read_exact_at(&mut found, 0)?;
        same_bytes(&found, &other.content)?;
    }
    direct_table(scene, &others[0])
}

fn direct_table(scene: &Scene<'_>, file: &Subject) -> Result<()> {
    scene.expect_table(&file.handle.query(.., MapFlags::empty(), "cpu")?, &[(0..file.length(), Direct)])
}
