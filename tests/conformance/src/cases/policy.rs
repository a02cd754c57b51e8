//! Policies of mount and file.

use anyhow::{Result, ensure};
use peerfs_abi::{MapFlags, Reason, Trigger};

use crate::case::{Case, Setup};
use crate::evidence::Way::{Direct, Fallback};
use crate::scene::{PAGE, Scene, cached_pages, cpu_reads};
use crate::witness::Witness;

pub const CASES: &[Case] = &[
    Case::new("policy-prefer", "prefer, the default, drops cached pages and maps directly", Setup::with("direct=prefer"), prefer),
    Case::new(
        "policy-never-mount",
        "never on the mount: nothing is direct, whatever a file's attribute says",
        Setup::with("direct=never"),
        never,
    ),
    Case::new(
        "policy-file-over-mount",
        "the attribute of a file counts more than prefer or respect-cache of the mount",
        Setup::with("direct=respect-cache"),
        file_over_mount,
    ),
    Case::new(
        "policy-change-revokes",
        "setting a file to never revokes its mappings and forbids new ones",
        Setup::PATIENT,
        change_revokes,
    )
    .revoking(Trigger::PolicyChange),
];

fn prefer(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 4 * PAGE)?;
    let reader = file.reader()?;
    cpu_reads(&reader, 0, &file.content)?;
    ensure!(cached_pages(&reader)? > 0, "the read was to be cached");
    let session = scene.session()?;
    scene.expect_table(&session.query(&file.handle, .., MapFlags::empty())?, &[(0..4 * PAGE, Direct)])?;
    let mapping = scene.map_direct(&session, &file, MapFlags::empty())?;
    ensure!(cached_pages(&reader)? == 0, "pages stay cached");
    scene.reads_directly(&mapping, 0, &file.content)
}

fn never(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 2 * PAGE)?;
    let session = scene.session()?;
    peerfs_sys::set_xattr(&file.path, "user.peerfs.direct", b"prefer")?;
    let mapping = session.map(&file.handle, .., MapFlags::WRITE)?;
    scene.expect_map(&mapping, &[(0..2 * PAGE, Fallback(Reason::Policy))])?;
    scene.reads_by_fallback(&mapping, 0, &file.content)
}

fn file_over_mount(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 2 * PAGE)?;
    let session = scene.session()?;
    let reader = file.reader()?;
    cpu_reads(&reader, 0, &file.content)?;
    peerfs_sys::set_xattr(&file.path, "user.peerfs.direct", b"prefer")?;
    scene.map_direct(&session, &file, MapFlags::empty())?;
    peerfs_sys::set_xattr(&file.path, "user.peerfs.direct", b"respect-cache")?;
    cpu_reads(&reader, 0, &file.content)?;
    let mapping = session.map(&file.handle, .., MapFlags::empty())?;
    scene.expect_map(&mapping, &[(0..2 * PAGE, Fallback(Reason::PageCached))])?;
    let refused = peerfs_sys::set_xattr(&file.path, "user.peerfs.direct", b"sometimes");
    ensure!(refused.is_err(), "a policy that does not exist is accepted");
    Ok(())
}

fn change_revokes(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 2 * PAGE)?;
    let witness = Witness::map(scene, &file, 0..2 * PAGE, MapFlags::WRITE)?;
    let never = || Ok(peerfs_sys::set_xattr(&file.path, "user.peerfs.direct", b"never")?);
    super::revocation::in_order(scene, &witness, Trigger::PolicyChange, never)?;
    let session = scene.session()?;
    let refused = session.map(&file.handle, .., MapFlags::empty())?;
    scene.expect_map(&refused, &[(0..2 * PAGE, Fallback(Reason::Policy))])
}
