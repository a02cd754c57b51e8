//! What a device's writes do besides: those of a store to an mmap.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::{Duration, SystemTime};

use anyhow::{Result, ensure};
use peerfs_abi::MapFlags;

use crate::backend::Capability;
use crate::case::{Case, Setup};
use crate::scene::{PAGE, Scene, cpu_reads, page_of, same_bytes};
use crate::witness::Witness;

pub const CASES: &[Case] = &[
    Case::new("effects-times", "a WRITE grant updates mtime and ctime; a read grant does not", Setup::USUAL, times),
    Case::new("effects-set-id", "a WRITE grant clears set-user-id and set-group-id", Setup::USUAL, set_id),
    Case::new("effects-fsync", "fsync of any handle makes what a device stored durable", Setup::USUAL.alone(), fsync)
        .needing(&[Capability::Persistent]),
    Case::new(
        "effects-beyond-eof",
        "bytes a device stores beyond the end of the file are zeros when the file grows",
        Setup::USUAL,
        beyond_eof,
    ),
    Case::new("effects-remount", "what a device stored outlives the mount", Setup::USUAL.alone(), remount)
        .needing(&[Capability::Persistent]),
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

fn fsync(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 8 * PAGE)?;
    {
        let witness = Witness::map(scene, &file, 0..8 * PAGE, MapFlags::WRITE)?;
        witness.store(3 * PAGE, &page_of(0x22))?;
        // A handle that has nothing to do with the mapping, opened for reading.
        file.reader()?.sync_all()?;
        witness.expect_undisturbed(scene)?;
        let server = peerfs_sys::ProcessHandle::open(scene.mount.server_pid()?.cast_unsigned())?;
        server.kill()?;
        ensure!(server.wait_exit(crate::witness::PATIENCE)?, "the server survives SIGKILL");
        witness.expect_cut()?;
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
