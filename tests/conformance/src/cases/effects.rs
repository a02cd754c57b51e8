//! What a device's writes do besides: those of a store to an mmap.

use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use nix::fcntl::{FallocateFlags, fallocate};
use peerfs_abi::{MapFlags, Trigger};

use super::pins;
use super::triggers::wait_until;
use crate::backend::Capability;
use crate::case::{Case, Setup};
use crate::kit::worker::NOBODY;
use crate::puppet::Puppet;
use crate::scene::{PAGE, Scene, Subject, cpu_reads, page_of, same_bytes};
use crate::witness::Witness;

pub const CASES: &[Case] = &[
    Case::new("effects-times", "a WRITE grant updates mtime and ctime; a read grant does not", Setup::USUAL, times),
    Case::new("effects-set-id", "a WRITE grant clears set-user-id and set-group-id", Setup::USUAL, set_id),
    Case::new(
        "effects-set-group-id",
        "set-group-id stays where the group may not execute: there it means another thing",
        Setup::USUAL,
        set_group_id,
    ),
    Case::new("effects-of-write-pin", "a WRITE pin has the same effects on times and set-id bits", Setup::USUAL, write_pin),
    Case::new(
        "effects-fsync-other-process",
        "fsync by another user's process that has mapped nothing covers what a device stored",
        Setup::USUAL.alone(),
        fsync_other_process,
    )
    .needing(&[Capability::Grants, Capability::Persistent]),
    Case::new("effects-fsync", "fsync of any handle makes what a device stored durable", Setup::USUAL.alone(), fsync)
        .needing(&[Capability::Grants, Capability::Persistent]),
    Case::new(
        "effects-beyond-eof",
        "bytes a device stores beyond the end of the file are zeros when the file grows",
        Setup::USUAL,
        beyond_eof,
    ),
    Case::new(
        "effects-grow-while-mapped",
        "the same when the file grows below the live mapping, by truncate, write or fallocate",
        Setup::USUAL,
        grow_while_mapped,
    ),
    Case::new(
        "effects-write-back-zeros",
        "bytes a device stores beyond the end of the file never reach the storage device",
        Setup::USUAL.alone(),
        write_back_zeros,
    )
    .needing(&[Capability::MediumFile, Capability::Grants, Capability::Persistent]),
    Case::new("effects-remount", "what a device stored outlives the mount", Setup::USUAL.alone(), remount)
        .needing(&[Capability::Grants, Capability::Persistent]),
];

fn long_ago() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1)
}

fn times(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 2 * PAGE)?;
    file.writer()?.set_modified(long_ago())?;
    let before = std::fs::metadata(&file.path)?;
    let session = scene.session()?;
    drop(scene.map_direct(&session, &file, MapFlags::empty())?);
    let read = std::fs::metadata(&file.path)?;
    ensure!(read.modified()? == long_ago(), "a read grant changes mtime");
    ensure!((read.ctime(), read.ctime_nsec()) == (before.ctime(), before.ctime_nsec()), "a read grant changes ctime");
    let mapping = scene.map_direct(&session, &file, MapFlags::WRITE)?;
    scene.writes_directly(&mapping, 0, &page_of(1))?;
    let written = std::fs::metadata(&file.path)?;
    ensure!(written.modified()? > long_ago(), "mtime stays");
    ensure!((written.ctime(), written.ctime_nsec()) > (before.ctime(), before.ctime_nsec()), "ctime stays");
    Ok(())
}

fn set_id(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 2 * PAGE)?;
    std::fs::set_permissions(&file.path, PermissionsExt::from_mode(0o6755))?;
    let session = scene.session()?;
    drop(scene.map_direct(&session, &file, MapFlags::empty())?);
    ensure!(std::fs::metadata(&file.path)?.mode() & 0o7777 == 0o6755, "a read grant clears them");
    drop(scene.map_direct(&session, &file, MapFlags::WRITE)?);
    let mode = std::fs::metadata(&file.path)?.mode() & 0o7777;
    ensure!(mode == 0o755, "mode {mode:o} after a WRITE grant");
    Ok(())
}

fn set_group_id(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 2 * PAGE)?;
    std::fs::set_permissions(&file.path, PermissionsExt::from_mode(0o6745))?;
    let session = scene.session()?;
    drop(scene.map_direct(&session, &file, MapFlags::WRITE)?);
    let mode = std::fs::metadata(&file.path)?.mode() & 0o7777;
    ensure!(mode == 0o2745, "mode {mode:o} after a WRITE grant");
    Ok(())
}

fn write_pin(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 2 * PAGE)?;
    file.writer()?.set_modified(long_ago())?;
    std::fs::set_permissions(&file.path, PermissionsExt::from_mode(0o6755))?;
    let before = std::fs::metadata(&file.path)?;
    let session = scene.session()?;
    drop(pins::pin(scene, &session, &file, MapFlags::PIN)?);
    pins::none_left(scene)?;
    let read = std::fs::metadata(&file.path)?;
    ensure!((read.mode() & 0o7777, read.modified()?) == (0o6755, long_ago()), "a read pin has effects");
    drop(pins::pin(scene, &session, &file, pins::WRITE_PIN)?);
    pins::none_left(scene)?;
    let written = std::fs::metadata(&file.path)?;
    ensure!(written.mode() & 0o7777 == 0o755, "mode {:o} after a WRITE pin", written.mode() & 0o7777);
    ensure!(written.modified()? > long_ago(), "mtime stays");
    ensure!((written.ctime(), written.ctime_nsec()) > (before.ctime(), before.ctime_nsec()), "ctime stays");
    Ok(())
}

fn fsync_other_process(scene: &mut Scene<'_>) -> Result<()> {
    fsync_by(scene, |scene, file| {
        let puppet = Puppet::start(scene, NOBODY)?;
        puppet.obey(&format!("open read {}", file.path.display()))?;
        puppet.obey("fsync").map(drop)
    })
}

fn fsync(scene: &mut Scene<'_>) -> Result<()> {
    // A handle that has nothing to do with the mapping, opened for reading.
    fsync_by(scene, |_, file| Ok(file.reader()?.sync_all()?))
}

/// What a device stored before this fsync outlives a crash of the server.
fn fsync_by(scene: &mut Scene<'_>, fsync: impl FnOnce(&Scene<'_>, &Subject) -> Result<()>) -> Result<()> {
    let file = scene.file("file", 8 * PAGE)?;
    {
        let witness = Witness::map(scene, &file, 0..8 * PAGE, MapFlags::WRITE)?;
        witness.store(3 * PAGE, &page_of(0x22))?;
        fsync(scene, &file)?;
        witness.expect_undisturbed(scene)?;
        let server = peerfs_sys::ProcessHandle::open(scene.mount.server_pid()?.cast_unsigned())?;
        server.kill()?;
        ensure!(server.wait_exit(crate::witness::PATIENCE)?, "the server survives SIGKILL");
        wait_until(|| witness.expect_cut().is_ok()).context("the window outlives the server")?;
    }
    let path = file.path.clone();
    drop(file);
    scene.mount.umount()?;
    scene.backend.mount_again(scene.mount, "")?;
    cpu_reads(&std::fs::File::open(path)?, 3 * PAGE, &page_of(0x22))
}

fn beyond_eof(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", PAGE + 100)?;
    let witness = Witness::map(scene, &file, 0..PAGE + 100, MapFlags::WRITE)?;
    ensure!(witness.load(PAGE + 99, 1)? == file.content[PAGE as usize + 99..], "the last byte is another");
    let held = &witness.held[0];
    let beyond = (held.segment.grant_offset + PAGE + 100) as usize;
    held.window.write(beyond, &[0xEE; 500]).map_err(|_| anyhow::anyhow!("the window ends with the file's last block"))?;
    witness.store(PAGE, &[0x22; 100])?;
    drop(witness);
    file.writer()?.set_len(3 * PAGE)?;
    let mut expected = file.content.clone();
    expected[PAGE as usize..].fill(0x22);
    expected.resize(3 * PAGE as usize, 0);
    same_bytes(&std::fs::read(&file.path)?, &expected)
}

fn grow_while_mapped(scene: &mut Scene<'_>) -> Result<()> {
    type Grow = fn(&Subject) -> Result<()>;
    let ways: [(&str, Grow); 3] = [
        ("truncate", |file| Ok(file.writer()?.set_len(3 * PAGE)?)),
        ("write", |file| Ok(file.writer()?.write_all_at(&[0], 3 * PAGE - 1)?)),
        ("fallocate", |file| Ok(fallocate(file.writer()?, FallocateFlags::empty(), 0, 3 * PAGE as i64)?)),
    ];
    for (name, grow) in ways {
        let file = scene.file(name, PAGE + 100)?;
        let witness = Witness::map(scene, &file, 0..PAGE + 100, MapFlags::WRITE)?;
        store_beyond(&witness, PAGE + 100, &[0xEE; 500])?;
        grow(&file).context(name)?;
        let mut expected = file.content.clone();
        expected.resize(3 * PAGE as usize, 0);
        same_bytes(&std::fs::read(&file.path)?, &expected).context(name)?;
    }
    Ok(())
}

/// Stores behind what was asked for, in the same window.
fn store_beyond(witness: &Witness, at: u64, bytes: &[u8]) -> Result<()> {
    let held = &witness.held[0];
    held.window.write((held.segment.grant_offset + at) as usize, bytes).ok().context("the window ends with the file's last byte")
}

fn write_back_zeros(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", PAGE + 100)?;
    let mut mark = [0; 64];
    scene.random().fill(&mut mark);
    // The same numbers are the content of the file, so these are others.
    mark.iter_mut().for_each(|byte| *byte ^= 0x5A);
    let inside: [u8; 64] = mark.map(|byte| !byte);
    {
        let witness = Witness::map(scene, &file, 0..PAGE + 100, MapFlags::WRITE)?;
        witness.store(PAGE, &inside)?;
        store_beyond(&witness, PAGE + 1000, &mark)?;
        // Written back by an fsync, by a revocation, and at the end.
        file.reader()?.sync_all()?;
        file.handle.revoke(..)?;
        witness.expect_event(scene, Trigger::Administrator)?;
    }
    drop(file);
    scene.mount.umount()?;
    let image = std::fs::read(scene.mount.image())?;
    ensure!(contains(&image, &inside), "not even what was stored inside the file is on the device");
    ensure!(!contains(&image, &mark), "bytes from beyond the end are on the device");
    scene.backend.mount_again(scene.mount, "")
}

fn contains(image: &[u8], wanted: &[u8]) -> bool {
    // Both were stored at a multiple of 8.
    image.chunks_exact(8).enumerate().any(|(at, word)| word == &wanted[..8] && image[at * 8..].starts_with(wanted))
}

fn remount(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 8 * PAGE)?;
    {
        let session = scene.session()?;
        let mapping = scene.map_direct(&session, &file, MapFlags::WRITE)?;
        scene.writes_directly(&mapping, 5 * PAGE, &page_of(0x22))?;
    }
    let path = file.path.clone();
    drop(file);
    scene.mount.umount()?;
    scene.mount.fsck()?;
    scene.backend.mount_again(scene.mount, "")?;
    cpu_reads(&std::fs::File::open(path)?, 5 * PAGE, &page_of(0x22))
}
