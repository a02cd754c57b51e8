//! What a hostile holder of a grant cannot get.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};

use anyhow::{Context, Result, ensure};
use peerfs_abi::ioctl;
use peerfs_abi::{MapFlags, Path, Reason};

use crate::case::{Case, Setup};
use crate::evidence::Way::{Direct, Fallback};
use crate::kit::attempts::SECRET;
use crate::kit::raw::{RawSession, open_direct, request};
use crate::kit::worker::{NOBODY, SOMEBODY};
use crate::puppet::Puppet;
use crate::scene::{CHUNK, PAGE, Scene, Subject, same_bytes};
use crate::witness::Witness;

pub const CASES: &[Case] = &[
    Case::new(
        "trust-read-grant",
        "a holder of a read grant cannot write, reseal, resize, reopen or own it, nor see other bytes",
        Setup::USUAL,
        read_grant,
    ),
    Case::new(
        "trust-write-grant",
        "a holder of a write grant cannot reseal, grow, reopen or own it, nor see other bytes",
        Setup::USUAL,
        write_grant,
    ),
    Case::new(
        "trust-socket-grant",
        "the same holds for grants that are handed over on a socket",
        Setup::with("grants=socket"),
        socket_grant,
    ),
    Case::new("trust-tail-reads-zeros", "the rest of a file's last block reads as zeros through a window", Setup::USUAL, tail),
    Case::new(
        "trust-other-process",
        "another process of the same user gets nothing by knowing the numbers",
        Setup::USUAL,
        other_process,
    ),
    Case::new(
        "trust-other-user",
        "another user gets nothing: not the grant, not the session, not the context",
        Setup::USUAL,
        other_user,
    ),
    Case::new("trust-unreadable-file", "a handle that may not read maps nothing", Setup::USUAL, unreadable),
];

fn hostile(scene: &Scene<'_>, access: &str) -> Result<()> {
    let secret = scene.file("secret", CHUNK)?;
    secret.handle.write_at(0, &vec![SECRET; CHUNK as usize])?;
    fs::set_permissions(&secret.path, PermissionsExt::from_mode(0o600))?;
    let target = public(scene, "target")?;
    scene.needs_window(&target)?;
    let puppet = Puppet::start(scene, NOBODY)?;
    puppet.obey(&format!("open {access} {}", target.path.display()))?;
    puppet.obey(&format!("session {}", scene.directory.display()))?;
    let flags = if access == "write" { MapFlags::WRITE } else { MapFlags::empty() };
    puppet.expect_map(scene, 0..target.length(), flags, &[(0..target.length(), Direct)])?;
    let during = puppet.obey("attack during")?;
    ensure!(during.parse::<usize>().is_ok_and(|count| count > 10), "too few attempts: {during}");
    let revoked = target.handle.revoke(..)?;
    ensure!(revoked.enforced >= 1, "the attacker acknowledges nothing: {revoked:?}");
    puppet.obey("attack after")?;
    drop(puppet);
    target.expect_content()?;
    ensure!(fs::read(&secret.path)?.iter().all(|byte| *byte == SECRET), "another file was changed");
    ensure!(scene.mount.alive(), "the server died");
    Ok(())
}

/// A file everybody may use that ends inside a block, and holds no secret byte.
fn public(scene: &Scene<'_>, name: &str) -> Result<Subject> {
    let mut file = scene.file(name, CHUNK / 2 + 1000)?;
    for byte in file.content.iter_mut().filter(|byte| **byte == SECRET) {
        *byte = 1;
    }
    file.handle.write_at(0, &file.content)?;
    fs::set_permissions(&file.path, PermissionsExt::from_mode(0o666))?;
    Ok(file)
}

fn read_grant(scene: &mut Scene<'_>) -> Result<()> {
    hostile(scene, "read")
}

fn write_grant(scene: &mut Scene<'_>) -> Result<()> {
    hostile(scene, "write")
}

fn socket_grant(scene: &mut Scene<'_>) -> Result<()> {
    hostile(scene, "read")
}

fn tail(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 2 * PAGE)?;
    file.handle.write_at(0, &vec![SECRET; 2 * PAGE as usize])?;
    file.reader()?.sync_all()?;
    // The freed bytes are still on the device, in the file's own last block.
    file.writer()?.set_len(PAGE + 100)?;
    for flags in [MapFlags::empty(), MapFlags::WRITE] {
        let witness = Witness::map(scene, &file, 0..PAGE + 100, flags)?;
        let held = &witness.held[0];
        let mut seen = vec![1; held.window.length()];
        held.window.read(0, &mut seen).ok().context("the load faults")?;
        let tail = (held.segment.grant_offset + PAGE + 100) as usize;
        same_bytes(&seen[..tail], &vec![SECRET; tail])?;
        ensure!(seen[tail..].iter().all(|byte| *byte == 0), "old bytes are visible behind the end of the file");
    }
    Ok(())
}

fn other_process(scene: &mut Scene<'_>) -> Result<()> {
    let file = public(scene, "file")?;
    let session = RawSession::open(&scene.directory)?;
    let answer = session.map_calmly(&open_direct(&file.path, true)?, 0, PAGE, MapFlags::WRITE)?;
    scene.expect_direct(&answer)?;
    thieves(scene, &file, &session, &answer, 0)?;
    // The grant was nobody's but ours: it can still be taken.
    session.take(answer.segments[0].grant_id, true).map(drop).context("somebody else took it")
}

fn other_user(scene: &mut Scene<'_>) -> Result<()> {
    let file = public(scene, "file")?;
    let session = RawSession::open(&scene.directory)?;
    let answer = session.map_calmly(&open_direct(&file.path, true)?, 0, PAGE, MapFlags::WRITE)?;
    scene.expect_direct(&answer)?;
    thieves(scene, &file, &session, &answer, SOMEBODY)?;
    let thief = Puppet::start(scene, SOMEBODY)?;
    thief.give(&session.session)?;
    let bound = thief.ask("bind")?;
    ensure!(bound == format!("errno {}", libc::EACCES), "another user's bind on the session answers `{bound}`");
    session.take(answer.segments[0].grant_id, true).map(drop).context("somebody else took it")
}

/// Everything that numbers could open.
fn thieves(scene: &Scene<'_>, file: &Subject, session: &RawSession, answer: &ioctl::Map, uid: u32) -> Result<()> {
    let thief = Puppet::start(scene, uid)?;
    thief.obey(&format!("open write {}", file.path.display()))?;
    thief.obey(&format!("session {}", scene.directory.display()))?;
    let grant = answer.segments[0].grant_id;
    for access in ["read", "write"] {
        let taken = thief.ask(&format!("steal {access} {grant}"))?;
        ensure!(taken.starts_with("errno"), "another process takes the grant: {taken}");
    }
    let added = thief.ask(&format!("add {}", answer.mapping_id))?;
    ensure!(added == format!("errno {}", libc::EBADF), "another process adds to the mapping: {added}");
    let ended = thief.ask(&format!("unmap {}", answer.mapping_id))?;
    ensure!(ended == format!("errno {}", libc::EBADF), "another process ends the mapping: {ended}");
    thief.obey(&format!("use {}", session.context.context_id))?;
    thief.expect_map(scene, 0..PAGE, MapFlags::empty(), &[(0..PAGE, Fallback(Reason::StaleContext))])
}

fn unreadable(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", PAGE)?;
    let session = RawSession::open(&scene.directory)?;
    let handle = fs::OpenOptions::new().write(true).open(&file.path)?;
    let mut argument = request(&handle, 0, PAGE, MapFlags::empty());
    argument.context_id = session.context.context_id;
    let refused = peerfs_sys::ioctl(&handle, ioctl::MAP, &mut *argument);
    ensure!(refused.err().and_then(|error| error.raw_os_error()) == Some(libc::EACCES), "a write-only handle maps");
    ensure!(handle.read_at(&mut [0], 0).is_err(), "as read(2) does");
    scene.evidence.path(Path::Fallback);
    Ok(())
}
