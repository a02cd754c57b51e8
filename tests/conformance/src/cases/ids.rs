//! Numbers: contexts and mappings.

use std::time::Duration;

use anyhow::{Result, ensure};
use peerfs_abi::MapFlags;

use crate::backend::Capability;
use crate::case::{Case, Setup};
use crate::evidence::Way::Direct;
use crate::kit::raw::{RawSession, open_direct, request};
use crate::scene::{PAGE, Scene};

pub const CASES: &[Case] = &[
    Case::new("context-ids-grow", "context numbers only grow, across sessions and clients", Setup::USUAL, grow),
    Case::new(
        "context-ids-across-remount",
        "no context number is used again after a remount",
        Setup::USUAL.alone(),
        across_remount,
    )
    .needing(&[Capability::Persistent]),
    Case::new(
        "context-ids-across-kill",
        "no context number is used again after the server was killed",
        Setup::USUAL.alone(),
        across_kill,
    )
    .needing(&[Capability::Persistent]),
    Case::new(
        "mapping-ids-go-stale",
        "the number of a mapping that ended names nothing, also when its place is used again",
        Setup::USUAL,
        mapping_ids,
    ),
];

fn grow(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", PAGE)?;
    let mut last = 0;
    for _ in 0..20 {
        let session = RawSession::open(&scene.directory)?;
        ensure!(session.context.context_id > last, "{} after {last}", session.context.context_id);
        last = session.context.context_id;
        let answer = session.map_calmly(&open_direct(&file.path, false)?, 0, PAGE, MapFlags::empty())?;
        scene.expect_answer(&answer, &[(0..PAGE, Direct)])?;
    }
    Ok(())
}

fn largest(scene: &Scene<'_>) -> Result<u64> {
    let ids = (0..5).map(|_| Ok(RawSession::open(&scene.directory)?.context.context_id));
    Ok(ids.collect::<Result<Vec<u64>>>()?.into_iter().max().unwrap_or(0))
}

fn mapped_after(scene: &Scene<'_>, last: u64) -> Result<()> {
    let session = scene.session()?;
    ensure!(session.context_id() > last, "{} after {last}", session.context_id());
    let file = scene.file(&format!("after-{last}"), PAGE)?;
    scene.map_direct(&session, &file, MapFlags::empty()).map(drop)
}

fn across_remount(scene: &mut Scene<'_>) -> Result<()> {
    for _ in 0..2 {
        let last = largest(scene)?;
        scene.mount.umount()?;
        scene.backend.mount_again(scene.mount, "")?;
        mapped_after(scene, last)?;
    }
    Ok(())
}

fn across_kill(scene: &mut Scene<'_>) -> Result<()> {
    for _ in 0..2 {
        let last = largest(scene)?;
        std::fs::File::open(&scene.directory)?.sync_all()?;
        scene.mount.crash()?;
        scene.backend.mount_again(scene.mount, "")?;
        mapped_after(scene, last)?;
    }
    Ok(())
}

fn mapping_ids(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 2 * PAGE)?;
    let handle = open_direct(&file.path, false)?;
    let session = RawSession::open(&scene.directory)?;
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..64 {
        let answer = session.map_calmly(&handle, 0, PAGE, MapFlags::empty())?;
        scene.expect_answer(&answer, &[(0..PAGE, Direct)])?;
        ensure!(seen.insert(answer.mapping_id), "mapping {:#x} comes again", answer.mapping_id);
        session.unmap(answer.mapping_id)?;
    }
    for ended in seen {
        let mut add = request(&handle, PAGE, PAGE, MapFlags::empty());
        (add.context_id, add.mapping_id) = (session.context.context_id, ended);
        let refused = peerfs_sys::ioctl(&handle, peerfs_abi::ioctl::MAP, &mut *add);
        ensure!(refused.err().and_then(|error| error.raw_os_error()) == Some(libc::EBADF), "mapping {ended:#x} still lives");
    }
    ensure!(session.event(Duration::ZERO)?.is_none(), "something was revoked");
    Ok(())
}
