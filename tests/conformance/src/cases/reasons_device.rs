//! Reasons of the block device and its aperture.

use anyhow::{Result, ensure};
use peerfs_abi::{ImporterFlags, MapFlags, Reason, Trigger};
use peerfs_client::{ImporterSpec, ReasonSet, Session};

use crate::backend::{ApertureSize, Capability};
use crate::case::{Case, Setup};
use crate::evidence::Way::{Direct, Fallback};
use crate::scene::{CHUNK, PAGE, Scene};

pub const CASES: &[Case] = &[
    Case::new(
        "reason-no-aperture",
        "without an aperture everything falls back with NoAperture and the bytes are the same",
        Setup::USUAL.aperture(ApertureSize::Absent),
        no_aperture,
    )
    .needing(&[Capability::NoAperture]),
    Case::new(
        "reason-aperture-full",
        "what the aperture has no room for falls back with ApertureFull, the rest is direct",
        Setup::USUAL.aperture(ApertureSize::Mebibytes(2)),
        aperture_full,
    )
    .needing(&[Capability::SizedAperture]),
    Case::new(
        "reason-write-forbidden",
        "an importer that cannot write is refused WRITE with WriteForbidden and may read",
        Setup::USUAL,
        write_forbidden,
    ),
    Case::new(
        "reason-atomic-unsupported",
        "an importer without atomics is refused ATOMIC with AtomicUnsupported and may map without",
        Setup::USUAL,
        atomic_unsupported,
    ),
    Case::new(
        "answer-all-refusals",
        "query names every reason that refuses a stretch; the first in pipeline order is the answer",
        Setup::USUAL,
        all_refusals,
    ),
    Case::new(
        "answer-triggers",
        "query names what could end a mapping later, and nothing for what is not direct",
        Setup::USUAL,
        later_triggers,
    ),
];

/// A session of an importer with these abilities.
pub fn limited(scene: &Scene<'_>, flags: ImporterFlags) -> Result<Session> {
    Ok(Session::open(&scene.directory, ImporterSpec { name: "limited".into(), flags, ..ImporterSpec::cpu() })?)
}

fn no_aperture(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 3 * PAGE)?;
    let expected = [(0..3 * PAGE, Fallback(Reason::NoAperture))];
    scene.expect_table(&file.handle.query(.., MapFlags::empty(), "cpu")?, &expected)?;
    let session = scene.session()?;
    let mapping = session.map(&file.handle, .., MapFlags::WRITE)?;
    scene.expect_map(&mapping, &expected)?;
    scene.reads_by_fallback(&mapping, 0, &file.content)
}

fn aperture_full(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 2 * CHUNK)?;
    let expected = [(0..CHUNK, Direct), (CHUNK..2 * CHUNK, Fallback(Reason::ApertureFull))];
    scene.expect_table(&file.handle.query(.., MapFlags::empty(), "cpu")?, &expected)?;
    let session = scene.session()?;
    let mapping = session.map(&file.handle, .., MapFlags::empty())?;
    scene.expect_map(&mapping, &expected)?;
    scene.reads_directly(&mapping, 0, &file.content[..CHUNK as usize])?;
    scene.reads_by_fallback(&mapping, CHUNK, &file.content[CHUNK as usize..])
}

fn write_forbidden(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", PAGE)?;
    let reader = limited(scene, ImporterFlags::DYNAMIC)?;
    let refused = [(0..PAGE, Fallback(Reason::WriteForbidden))];
    scene.expect_table(&file.handle.query(.., MapFlags::WRITE, "readonly")?, &refused)?;
    let mapping = reader.map(&file.handle, .., MapFlags::WRITE)?;
    scene.expect_map(&mapping, &refused)?;
    ensure!(mapping.write_at(0, &[7])?.fallback == 1, "the same call serves a write through the filesystem");
    scene.map_direct(&reader, &file, MapFlags::empty()).map(drop)
}

fn atomic_unsupported(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", PAGE)?;
    let plain = limited(scene, ImporterFlags::DYNAMIC | ImporterFlags::WRITE)?;
    let mapping = plain.map(&file.handle, .., MapFlags::WRITE | MapFlags::ATOMIC)?;
    scene.expect_map(&mapping, &[(0..PAGE, Fallback(Reason::AtomicUnsupported))])?;
    scene.reads_by_fallback(&mapping, 0, &file.content)?;
    drop(mapping);
    scene.map_direct(&plain, &file, MapFlags::WRITE).map(drop)
}

fn all_refusals(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", PAGE)?;
    file.writer()?.set_len(2 * PAGE)?;
    peerfs_sys::set_xattr(&file.path, "user.peerfs.direct", b"never")?;
    let reader = peerfs_client::File::open(&file.path)?;
    let session = limited(scene, ImporterFlags::empty())?;
    let table = session.query(&reader, .., MapFlags::WRITE | MapFlags::ATOMIC)?;
    scene.expect_table(&table, &[(0..PAGE, Fallback(Reason::Policy)), (PAGE..2 * PAGE, Fallback(Reason::Hole))])?;
    let everywhere =
        [Reason::Policy, Reason::ReadOnly, Reason::WriteForbidden, Reason::AtomicUnsupported, Reason::NotifierRequired];
    let set = |reasons: &[Reason]| reasons.iter().fold(ReasonSet::EMPTY, |set, reason| set.with(*reason));
    let (blocks, hole) = (table.segments[0].refusals, table.segments[1].refusals);
    ensure!(blocks == set(&everywhere), "the blocks are refused for {blocks:?}");
    ensure!(hole == set(&everywhere).with(Reason::Hole), "the hole is refused for {hole:?}");
    for segment in &table.segments {
        ensure!(segment.refusals.first() == segment.reason, "{:?} is not the first of {:?}", segment.reason, segment.refusals);
    }
    everywhere.iter().for_each(|reason| scene.evidence.reason(*reason));
    Ok(())
}

fn later_triggers(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", PAGE)?;
    file.writer()?.set_len(2 * PAGE)?;
    let table = file.handle.query(.., MapFlags::empty(), "cpu")?;
    scene.expect_table(&table, &[(0..PAGE, Direct), (PAGE..2 * PAGE, Fallback(Reason::Hole))])?;
    let [mapped, hole] = [table.segments[0].triggers, table.segments[1].triggers];
    for trigger in
        [Trigger::Truncate, Trigger::Punch, Trigger::Unlink, Trigger::CpuAccess, Trigger::Administrator, Trigger::Unmount]
    {
        ensure!(mapped.contains(trigger), "{trigger} is not named: {mapped:?}");
    }
    ensure!(hole.is_empty(), "what is not mapped ends by {hole:?}");
    Ok(())
}
