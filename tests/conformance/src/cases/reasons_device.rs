//! Reasons of the block device and its aperture.

use anyhow::{Result, ensure};
use peerfs_abi::names::SERVER_IMPORTER;
use peerfs_abi::{ImporterFlags, MapFlags, Reason, Trigger, TriggerSet};
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
    .refusing(Reason::NoAperture)
    .needing(&[Capability::NoAperture]),
    Case::new(
        "reason-aperture-full",
        "what the aperture has no room for falls back with ApertureFull, the rest is direct",
        Setup::USUAL.aperture(ApertureSize::Mebibytes(2)),
        aperture_full,
    )
    .refusing(Reason::ApertureFull)
    .needing(&[Capability::SizedAperture]),
    Case::new(
        "reason-write-forbidden",
        "an importer that cannot write is refused WRITE with WriteForbidden and may read",
        Setup::USUAL,
        write_forbidden,
    )
    .refusing(Reason::WriteForbidden),
    Case::new(
        "reason-atomic-unsupported",
        "an importer without atomics is refused ATOMIC with AtomicUnsupported and may map without",
        Setup::USUAL,
        atomic_unsupported,
    )
    .refusing(Reason::AtomicUnsupported),
    Case::new(
        "answer-all-refusals",
        "query names every reason that refuses a stretch; the first in pipeline order is the answer",
        Setup::USUAL,
        all_refusals,
    ),
    Case::new(
        "answer-triggers",
        "query names everything that could end a mapping later and nothing else, and nothing for what is not direct",
        Setup::USUAL,
        later_triggers,
    ),
    Case::new(
        "answer-triggers-pin",
        "of a pin it names what ends one before its holders do: force and unmounting",
        Setup::USUAL,
        later_triggers_of_pin,
    ),
    Case::new(
        "answer-triggers-read-only",
        "on a read-only mount it names no change of the file and no access of the CPU",
        Setup::USUAL.alone(),
        later_triggers_read_only,
    )
    .needing(&[Capability::Persistent]),
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
    let everywhere: Vec<Reason> = everywhere.into_iter().chain(scene.refusal()).collect();
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

/// What ends mappings of any file on any mount. (Unmap is the client's own doing.)
const ALWAYS: [Trigger; 5] =
    [Trigger::Relocation, Trigger::Administrator, Trigger::ClientGone, Trigger::Unmount, Trigger::DeviceEvent];
/// What changes a file, or is done to its pages.
const CHANGES: [Trigger; 6] =
    [Trigger::Truncate, Trigger::Punch, Trigger::Unlink, Trigger::CpuAccess, Trigger::PolicyChange, Trigger::Reflink];

/// An identity aperture has room for all of the volume, so nobody is ever in the way.
fn pressure(scene: &Scene<'_>) -> Result<Option<Trigger>> {
    let windowed = scene.mount.info()?["aperture"]["kind"] == "windowed";
    Ok(windowed.then_some(Trigger::AperturePressure))
}

fn expect_triggers(found: TriggerSet, expected: impl IntoIterator<Item = Trigger>) -> Result<()> {
    let expected: TriggerSet = expected.into_iter().collect();
    ensure!(found == expected, "it ends by {found:?} instead of {expected:?}");
    Ok(())
}

/// An importer that reaches blocks directly.
fn reaching(scene: &Scene<'_>) -> &'static str {
    if scene.grants() { "cpu" } else { SERVER_IMPORTER }
}

fn later_triggers(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", PAGE)?;
    file.writer()?.set_len(2 * PAGE)?;
    for flags in [MapFlags::empty(), MapFlags::WRITE] {
        let table = file.handle.query(.., flags, reaching(scene))?;
        scene.expect_table_of(reaching(scene), &table, &[(0..PAGE, Direct), (PAGE..2 * PAGE, Fallback(Reason::Hole))])?;
        expect_triggers(table.segments[0].triggers, ALWAYS.into_iter().chain(CHANGES).chain(pressure(scene)?))?;
        expect_triggers(table.segments[1].triggers, [])?;
    }
    Ok(())
}

fn later_triggers_of_pin(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", PAGE)?;
    scene.needs_window(&file)?;
    for flags in [MapFlags::PIN, MapFlags::PIN | MapFlags::WRITE] {
        let table = file.handle.query(.., flags, "static")?;
        scene.expect_table(&table, &[(0..PAGE, Direct)])?;
        expect_triggers(table.segments[0].triggers, [Trigger::Administrator, Trigger::Unmount])?;
    }
    Ok(())
}

fn later_triggers_read_only(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", PAGE)?;
    let path = file.path.clone();
    drop(file);
    scene.mount.umount()?;
    scene.backend.mount_again(scene.mount, "ro")?;
    let table = peerfs_client::File::open(&path)?.query(.., MapFlags::empty(), reaching(scene))?;
    scene.expect_table_of(reaching(scene), &table, &[(0..PAGE, Direct)])?;
    expect_triggers(table.segments[0].triggers, ALWAYS.into_iter().chain(pressure(scene)?))
}
