//! Pins beside what others do with the file: who keeps one, what the file gives up below it, and who pays.

use std::io::IoSlice;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::unistd::Pid;
use nix::unistd::geteuid;
use peerfs_abi::{MapFlags, Reason, Trigger};
use peerfs_client::Error;
use peerfs_sys::{FileView, ProcessHandle, Sharing, Window};

use super::pins::{WRITE_PIN, expect_quarantined, memory, none_left, pin};
use super::revocation::DEADLINE;
use super::triggers::wait_until;
use crate::backend::Capability;
use crate::case::{Case, Setup};
use crate::evidence::Way::{Direct, Fallback};
use crate::kit::raw::readable;
use crate::kit::worker::NOBODY;
use crate::puppet::Puppet;
use crate::scene::{PAGE, Scene, Subject, cached_pages, cpu_reads, page_of, same_bytes};
use crate::witness::{PATIENCE, Witness};

/// Three pages of pins, of which one user may hold two.
const SHARED_QUOTA: Setup = Setup::with("pin_quota=12K,pin_quota_user=8K");
const PAGES: u64 = 64;

pub const CASES: &[Case] = &[
    Case::new(
        "pin-passed-over-socket",
        "a pin lives on its way over a socket and in the process that takes it, and ends with that",
        Setup::USUAL,
        passed_over_socket,
    ),
    Case::new("pin-quarantine-punch", "the same for blocks that are punched out", Setup::USUAL, punched),
    Case::new("pin-quarantine-unlink", "the same for the blocks of a file that is gone", Setup::USUAL, unlinked),
    Case::new(
        "pin-own-blocks",
        "a pin has blocks of its own: a pinned file is not cloned, and what a clone shares is not pinned until it was rewritten",
        Setup::USUAL,
        own_blocks,
    )
    .refusing(Reason::SharedExtent),
    Case::new(
        "pin-read-excludes-writers",
        "beside a read pin programs may read through the cache, and what they write goes past it and shows in the pin",
        Setup::USUAL,
        read_pin,
    ),
    Case::new(
        "pin-ends-with-server",
        "a server that dies takes its pins along: they are cut, and the next mount frees what was in quarantine",
        Setup::USUAL.alone(),
        ends_with_server,
    )
    .needing(&[Capability::Grants, Capability::Persistent]),
    Case::new(
        "pin-keeps-mount-busy",
        "unmounting is refused with EBUSY while a process has a pin of the mount mapped, and disturbs nobody",
        Setup::USUAL.alone(),
        keeps_mount_busy,
    )
    .needing(&[Capability::Grants]),
    Case::new(
        "pin-ends-with-forced-unmount",
        "unmounting by force tells who made a pin, waits until the deadline, and cuts it; holders get SIGBUS and the mount ends",
        Setup::USUAL.alone(),
        ends_with_forced_unmount,
    )
    .revoking(Trigger::Administrator)
    .needing(&[Capability::Grants]),
    Case::new(
        "pin-ends-with-asked-server",
        "a server that is asked to end tells who made a pin, waits, cuts it, and ends, whoever still has one mapped",
        Setup::PATIENT.alone(),
        ends_with_asked_server,
    )
    .revoking(Trigger::Unmount)
    .needing(&[Capability::Grants]),
    Case::new(
        "pin-ends-with-unmount",
        "a pin that was handed over on a socket keeps no mount busy: unmounting cuts it, and holders get SIGBUS",
        Setup::with("grants=socket").alone(),
        ends_with_unmount,
    )
    .needing(&[Capability::Grants]),
    Case::new(
        "pin-quota-of-user",
        "one user's pins are charged to that user, and what all have together to the mount",
        SHARED_QUOTA,
        quota_of_user,
    )
    .refusing(Reason::PinQuota),
];

fn pins(scene: &Scene<'_>) -> Result<u64> {
    scene.mount.info()?["pins"].as_u64().context("info.json counts pins")
}

/// The server has looked for pins without holders, and this many are left: it ended another one meanwhile.
pub fn expect_alive(scene: &Scene<'_>, count: u64) -> Result<()> {
    let other = scene.file(&format!("other-{count}-{}", std::process::id()), PAGE)?;
    let session = scene.session()?;
    let mapping = pin(scene, &session, &other, MapFlags::PIN)?;
    let (fd, window) = memory(&mapping, false)?;
    drop(mapping);
    ensure!(pins(scene)? == count + 1, "{} pins instead of {}", pins(scene)?, count + 1);
    drop((fd, window));
    wait_until(|| pins(scene).is_ok_and(|left| left <= count)).context("a pin outlives its holders")?;
    ensure!(pins(scene)? == count, "a pin ended that has a holder");
    Ok(std::fs::remove_file(&other.path)?)
}

fn passed_over_socket(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", PAGES * PAGE)?;
    let (sender, receiver) = UnixStream::pair()?;
    {
        let session = scene.session()?;
        let mapping = pin(scene, &session, &file, MapFlags::PIN)?;
        let raw = [mapping.pins()[0].fd.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&raw)];
        sendmsg::<()>(sender.as_raw_fd(), &[IoSlice::new(b"x")], &rights, MsgFlags::empty(), None)?;
    }
    // Session, mapping and descriptor are gone: it is held by the message alone.
    expect_alive(scene, 1)?;
    let (_, passed) = peerfs_sys::receive_with_fd(&receiver, &mut [0; 1])?;
    let mut puppet = Puppet::start(scene, NOBODY)?;
    puppet.give(&passed.context("no descriptor came with the message")?)?;
    wait_until(|| scene.mount.info().is_ok_and(|info| info["sessions"] == 0)).context("a session stays")?;
    let seen = puppet.obey(&format!("given-loads {} {}", PAGES * PAGE, 5 * PAGE))?;
    ensure!(seen == file.page(5)[0].to_string(), "the other process reads {seen}");
    ensure!(pins(scene)? == 1, "the pin ended although a process holds it");
    puppet.kill()?;
    none_left(scene)
}

/// After `give_up` a WRITE pin keeps what the file had in `kept`, nobody else gets those blocks, and what is stored
/// through the pin reaches nobody.
fn quarantined(scene: &Scene<'_>, file: Subject, kept: Range<u64>, give_up: impl FnOnce(Subject) -> Result<()>) -> Result<()> {
    let content = file.content.clone();
    let (fd, window) = {
        let session = scene.session()?;
        memory(&pin(scene, &session, &file, WRITE_PIN)?, true)?
    };
    give_up(file)?;
    std::fs::File::open(&scene.directory)?.sync_all()?;
    let state = || -> Result<bool> {
        let ledger: serde_json::Value = serde_json::from_slice(&std::fs::read(scene.mount.join(".peerfs/mappings.json"))?)?;
        Ok(ledger["pins"][0]["state"] == "orphaned")
    };
    wait_until(|| state().unwrap_or(false)).context("the ledger does not say that the file gave blocks up")?;
    expect_quarantined(scene, kept.end - kept.start)?;
    let others: Vec<Subject> = (0..8).map(|number| scene.file(&format!("next-{number}"), PAGES * PAGE)).collect::<Result<_>>()?;
    let whole = kept.start as usize..kept.end as usize;
    let mut found = vec![0; whole.len()];
    window.read(whole.start, &mut found).ok().context("the pin was cut")?;
    same_bytes(&found, &content[whole.clone()]).context("the pin shows other bytes than those it pinned")?;
    window.write(whole.start, &vec![0xEE; whole.len()]).ok().context("the pin was cut")?;
    drop((fd, window));
    none_left(scene)?;
    expect_quarantined(scene, 0)?;
    for other in &others {
        let mut found = vec![0; other.content.len()];
        other.open(libc::O_DIRECT | libc::O_NONBLOCK)?.read_exact_at(&mut found, 0)?;
        same_bytes(&found, &other.content).context("a block was used again under the pin")?;
    }
    Ok(())
}

fn punched(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", PAGES * PAGE)?;
    let (path, mut expected) = (file.path.clone(), file.content.clone());
    let hole = 8 * PAGE..40 * PAGE;
    quarantined(scene, file, hole.clone(), |file| {
        let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let direct = file.open(libc::O_DIRECT | libc::O_NONBLOCK)?;
        fallocate(&direct, mode, (8 * PAGE) as i64, (32 * PAGE) as i64)?;
        cpu_reads(&direct, 8 * PAGE, &vec![0; 32 * PAGE as usize])
    })?;
    expected[hole.start as usize..hole.end as usize].fill(0);
    same_bytes(&std::fs::read(path)?, &expected)
}

fn unlinked(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", PAGES * PAGE)?;
    quarantined(scene, file, 0..PAGES * PAGE, |file| Ok(std::fs::remove_file(&file.path)?))
}

fn own_blocks(scene: &mut Scene<'_>) -> Result<()> {
    let (file, clone) = (scene.file("file", PAGES * PAGE)?, scene.empty("clone")?);
    let session = scene.session()?;
    for flags in [WRITE_PIN, MapFlags::PIN] {
        let mapping = pin(scene, &session, &file, flags)?;
        let refused = clone.handle.reflink_from(&file.handle, 0, 0, 0);
        let busy = matches!(&refused, Err(Error::System { source, .. }) if source.raw_os_error() == Some(libc::ETXTBSY));
        ensure!(busy, "to clone what a pin reaches answers {refused:?}");
        drop(mapping);
        none_left(scene)?;
    }
    clone.handle.reflink_from(&file.handle, 0, 0, 0)?;
    let whole = 0..PAGES * PAGE;
    for subject in [&file, &clone] {
        let refused = [(whole.clone(), Fallback(Reason::SharedExtent))];
        scene.expect_table(&session.query(&subject.handle, .., MapFlags::PIN)?, &refused)?;
        scene.expect_map(&session.map(&subject.handle, .., MapFlags::PIN)?, &refused)?;
    }
    // Written anew, the clone has blocks of its own, and so has the file.
    clone.handle.write_at(0, &vec![0x22; (PAGES * PAGE) as usize])?;
    clone.writer()?.sync_all()?;
    drop(pin(scene, &session, &file, MapFlags::PIN)?);
    none_left(scene)?;
    cpu_reads(&file.reader()?, 0, &file.content)
}

fn read_pin(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 4 * PAGE)?;
    let session = scene.session()?;
    let mapping = pin(scene, &session, &file, MapFlags::PIN)?;
    let reader = file.reader()?;
    cpu_reads(&reader, 0, &file.content)?;
    ensure!(cached_pages(&reader)? > 0, "reading beside a read pin is not cached");
    scene.reads_directly(&mapping, 0, &file.content)?;
    let writer = file.writer()?;
    let refused = FileView::map(&writer, PAGE as usize, Sharing::Shared, true).err().and_then(|error| error.raw_os_error());
    ensure!(refused == Some(libc::ENODEV), "a shared mmap of a writable handle answers {refused:?}");
    writer.write_all_at(&page_of(0x22), PAGE)?;
    scene.reads_directly(&mapping, PAGE, &page_of(0x22))?;
    cpu_reads(&reader, PAGE, &page_of(0x22))?;
    drop((mapping, writer, reader));
    none_left(scene)?;
    let writer = file.writer()?;
    ensure!(FileView::map(&writer, PAGE as usize, Sharing::Shared, true).is_ok(), "writable opens stay direct after the pin");
    Ok(())
}

fn ends_with_server(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", PAGES * PAGE)?;
    let session = scene.session()?;
    let (fd, window) = memory(&pin(scene, &session, &file, MapFlags::PIN)?, false)?;
    let direct = file.open(libc::O_DIRECT | libc::O_NONBLOCK)?;
    direct.set_len(0)?;
    direct.sync_all()?;
    let before = free_bytes(scene)?;
    ensure!(readable(&window) == PAGES as usize, "the truncate cut the pin");
    drop((direct, file));
    scene.mount.crash()?;
    wait_until(|| readable(&window) == 0).context("the pin outlives the server")?;
    let again = Window::map(&fd, window.length(), false).map_or(0, |again| readable(&again));
    ensure!(again == 0, "{again} pages of the dead pin can be mapped again");
    scene.backend.mount_again(scene.mount, "")?;
    ensure!(pins(scene)? == 0, "the pin is there again");
    let freed = || free_bytes(scene).is_ok_and(|free| free >= before + PAGES * PAGE);
    wait_until(freed).context("the blocks of the dead pin are not free")?;
    scene.mount.umount()?;
    scene.mount.fsck()?;
    scene.backend.mount_again(scene.mount, "")
}

/// Another process, as another user, that has nothing of a pin but a mapping of its memory. A read pin, which is a memory
/// file on every kernel: `dmabuf` has what is otherwise where that can be none.
fn keeper(scene: &Scene<'_>, file: &Subject) -> Result<Puppet> {
    let session = scene.session()?;
    let mapping = pin(scene, &session, file, MapFlags::PIN)?;
    keeps(scene, &mapping.pins()[0].fd)
}

/// The same, of a pin of [`PAGES`] that is at hand.
fn keeps(scene: &Scene<'_>, memory: &impl AsRawFd) -> Result<Puppet> {
    let puppet = Puppet::start(scene, NOBODY)?;
    puppet.give(memory)?;
    puppet.obey(&format!("keep-given {}", PAGES * PAGE))?;
    Ok(puppet)
}

fn keeps_mount_busy(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", PAGES * PAGE)?;
    let (path, content) = (file.path.clone(), file.content.clone());
    let mut puppet = keeper(scene, &file)?;
    drop(file);
    wait_until(|| scene.mount.info().is_ok_and(|info| info["sessions"] == 0)).context("a session stays")?;
    let refused = umount2(&scene.mount.path(), MntFlags::empty());
    let expected = if geteuid().is_root() { Errno::EBUSY } else { Errno::EPERM };
    ensure!(refused == Err(expected), "umount(2) answers {refused:?}");
    ensure!(scene.mount.umount().is_err(), "`peerfs umount` takes it off");
    expect_alive(scene, 1)?;
    let seen = puppet.obey(&format!("kept-loads {}", 5 * PAGE))?;
    ensure!(seen == content[5 * PAGE as usize].to_string(), "the holder reads {seen}");
    puppet.kill()?;
    none_left(scene)?;
    scene.mount.umount()?;
    scene.backend.mount_again(scene.mount, "")?;
    ensure!(!scene.backend.has(Capability::Persistent) || std::fs::read(path)? == content, "the file has other bytes");
    Ok(())
}

/// The process is killed by SIGBUS at its next access.
fn dies_of_sigbus(puppet: &mut Puppet) -> Result<()> {
    let status = puppet.end()?;
    let signal = std::os::unix::process::ExitStatusExt::signal(&status);
    ensure!(signal == Some(libc::SIGBUS), "the holder ended with {status} instead of SIGBUS");
    Ok(())
}

fn spins(puppet: &Puppet) -> Result<()> {
    puppet.send("spin")?;
    ensure!(puppet.hear()? == "spinning", "it does not start");
    Ok(())
}

/// The server is gone, so that the volume is free.
fn await_end(server: &ProcessHandle) -> Result<()> {
    ensure!(server.wait_exit(PATIENCE)?, "the server goes on");
    Ok(())
}

fn ends_with_forced_unmount(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", PAGES * PAGE)?;
    let server = ProcessHandle::open(scene.mount.server_pid()?.cast_unsigned())?;
    let witness = Witness::map(scene, &file, 0..PAGES * PAGE, MapFlags::PIN)?;
    let [mut puppet, mut idle] = [keeps(scene, &witness.held[0].fd)?, keeps(scene, &witness.held[0].fd)?];
    spins(&puppet)?;
    let start = Instant::now();
    scene.mount.umount_force()?;
    // Nobody acknowledges.
    ensure!(start.elapsed() >= DEADLINE, "it did not wait for who made the pin");
    witness.expect_event(scene, Trigger::Administrator)?;
    witness.expect_cut()?;
    dies_of_sigbus(&mut puppet)?;
    drop((witness, file));
    // Whoever does not touch the memory does not notice, and keeps what is left of the mount.
    ensure!(idle.obey("pid")? == idle.pid().to_string() && !server.wait_exit(Duration::ZERO)?, "the server ends beside a holder");
    idle.kill()?;
    await_end(&server)?;
    scene.backend.mount_again(scene.mount, "")
}

fn ends_with_asked_server(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", PAGES * PAGE)?;
    let pid = scene.mount.server_pid()?;
    let server = ProcessHandle::open(pid.cast_unsigned())?;
    let witness = Witness::map(scene, &file, 0..PAGES * PAGE, MapFlags::PIN)?;
    let [mut puppet, _idle] = [keeps(scene, &witness.held[0].fd)?, keeps(scene, &witness.held[0].fd)?];
    spins(&puppet)?;
    kill(Pid::from_raw(pid), Signal::SIGTERM)?;
    let event = witness.expect_event(scene, Trigger::Unmount)?;
    witness.expect_still_alive(scene)?;
    witness.acknowledge(&event)?;
    wait_until(|| witness.expect_cut().is_ok()).context("the pin outlives the mount")?;
    dies_of_sigbus(&mut puppet)?;
    await_end(&server)?;
    scene.mount.has_unmounted_itself();
    scene.backend.mount_again(scene.mount, "")
}

fn ends_with_unmount(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", PAGES * PAGE)?;
    let mut puppet = keeper(scene, &file)?;
    drop(file);
    wait_until(|| scene.mount.info().is_ok_and(|info| info["sessions"] == 0)).context("a session stays")?;
    expect_alive(scene, 1)?;
    spins(&puppet)?;
    scene.mount.umount()?;
    dies_of_sigbus(&mut puppet)?;
    scene.backend.mount_again(scene.mount, "")
}

fn free_bytes(scene: &Scene<'_>) -> Result<u64> {
    // What is freed comes back with the next commit.
    std::fs::File::open(scene.mount.path())?.sync_all()?;
    scene.mount.info()?["volume"]["free_bytes"].as_u64().context("info.json has the free space")
}

fn quota_of_user(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 4 * PAGE)?;
    scene.needs_window(&file)?;
    std::fs::set_permissions(&file.path, PermissionsExt::from_mode(0o666))?;
    let session = scene.session()?;
    let mapping = session.map(&file.handle, .., MapFlags::PIN)?;
    scene.expect_map(&mapping, &[(0..2 * PAGE, Direct), (2 * PAGE..4 * PAGE, Fallback(Reason::PinQuota))])?;
    // Another session of the same user.
    let other = scene.file("other", 4 * PAGE)?;
    std::fs::set_permissions(&other.path, PermissionsExt::from_mode(0o666))?;
    let full = [(0..4 * PAGE, Fallback(Reason::PinQuota))];
    scene.expect_map(&scene.session()?.map(&other.handle, .., MapFlags::PIN)?, &full)?;
    // Another user, who gets what the mount has left.
    let puppet = Puppet::start(scene, NOBODY)?;
    puppet.obey(&format!("session {}", scene.directory.display()))?;
    puppet.obey(&format!("open read {}", other.path.display()))?;
    let left = [(0..PAGE, Direct), (PAGE..4 * PAGE, Fallback(Reason::PinQuota))];
    puppet.expect_map(scene, 0..4 * PAGE, MapFlags::PIN, &left)?;
    puppet.obey("unmap own")?;
    drop(mapping);
    none_left(scene)?;
    let own = [(0..2 * PAGE, Direct), (2 * PAGE..4 * PAGE, Fallback(Reason::PinQuota))];
    puppet.expect_map(scene, 0..4 * PAGE, MapFlags::PIN, &own)?;
    puppet.obey("unmap own")?;
    none_left(scene)
}
