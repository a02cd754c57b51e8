//! Device memory: the second exporter, mapped through the same calls as a file.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use peerfs_abi::{MapFlags, Reason, Trigger};
use peerfs_client::{DeviceMemory, Error, Mapping};

use super::revocation::LAST_STORE;
use super::triggers::wait_until;
use crate::case::{Case, Setup};
use crate::evidence::Way::{Direct, Fallback};
use crate::kit::raw::{RawSession, direct_segments, open_direct};
use crate::kit::worker::{NOBODY, SOMEBODY};
use crate::puppet::Puppet;
use crate::scene::{CHUNK, PAGE, Scene, page_of, same_bytes};
use crate::witness::Witness;

const MIB: u64 = 1 << 20;
const ROOMY: Setup = Setup::with_device_memory("devmem=64M");
const ROOMY_PATIENT: Setup = Setup::with_device_memory("devmem=64M,deadline_ms=30000");
/// One process may hold less than one user, one user less than there is.
const LIMITED: Setup = Setup::with_device_memory("devmem=8M,devmem_main=4M,devmem_user_limit=6M,devmem_process_limit=4M");
const CRAMPED: Setup = Setup::with_device_memory("devmem=8M");

pub const CASES: &[Case] = &[
    Case::new(
        "devmem-direct",
        "device memory is mapped, queried, read and written through the calls of a file, and is direct altogether",
        ROOMY,
        direct,
    ),
    Case::new("devmem-absent", "a mount without device memory says so", Setup::USUAL, absent),
    Case::new(
        "devmem-limits",
        "what exceeds the device, a user's or a process's limit is refused by its own error",
        LIMITED,
        limits,
    ),
    Case::new("devmem-grow", "grown device memory is zero in its new part, and what was mapped stays direct", ROOMY, grow),
    Case::new(
        "devmem-free-revokes",
        "freeing it revokes the mappings of others first, in the order of every revocation",
        ROOMY_PATIENT,
        free_revokes,
    ),
    Case::new(
        "devmem-migrates",
        "under pressure it moves to main memory: mappings are revoked, the same bytes fall back, and come back direct",
        CRAMPED,
        migrates,
    ),
    Case::new(
        "devmem-other-user",
        "another user maps what the permissions of device memory allow: nothing, or reading, or both",
        ROOMY,
        other_user,
    ),
];

/// The file of an allocation, by which everybody else opens it.
fn file_of(scene: &Scene<'_>, memory: &DeviceMemory) -> PathBuf {
    scene.path(".peerfs").join(peerfs_abi::devmem::device_memory_name(memory.id()))
}

fn map_all(scene: &Scene<'_>, memory: &DeviceMemory, flags: MapFlags) -> Result<Mapping> {
    let mapping = memory.map(.., flags)?;
    scene.expect_map(&mapping, &[(0..memory.bytes()?, Direct)])?;
    Ok(mapping)
}

/// All of it is free again.
fn all_free(scene: &Scene<'_>) -> Result<()> {
    let free =
        || scene.mount.info().is_ok_and(|info| info["device_memory"]["free_bytes"] == info["device_memory"]["device_bytes"]);
    wait_until(free).context("device memory without an owner is not free")
}

fn refused<T: std::fmt::Debug>(result: Result<T, Error>, errno: i32) -> Result<()> {
    match &result {
        Err(Error::System { source, .. }) if source.raw_os_error() == Some(errno) => Ok(()),
        other => anyhow::bail!("{other:?} instead of errno {errno}"),
    }
}

fn direct(scene: &mut Scene<'_>) -> Result<()> {
    let session = scene.session()?;
    let memory = session.allocate_device_memory(3 * MIB)?;
    scene.expect_table(&session.query(memory.file(), .., MapFlags::WRITE)?, &[(0..3 * MIB, Direct)])?;
    let mapping = map_all(scene, &memory, MapFlags::WRITE)?;
    scene.reads_directly(&mapping, 0, &vec![0; 3 * MIB as usize])?;
    scene.writes_directly(&mapping, CHUNK - PAGE, &vec![0x22; 2 * PAGE as usize])?;
    let mut found = vec![0; 2 * PAGE as usize];
    memory.read_at(CHUNK - PAGE, &mut found)?;
    same_bytes(&found, &vec![0x22; 2 * PAGE as usize])?;
    // Another session's importer shares it, as it would a file.
    let other = scene.session()?;
    let file = other.open_device_memory(memory.id(), true)?;
    let shared = other.map(&file, .., MapFlags::WRITE)?;
    scene.expect_map(&shared, &[(0..3 * MIB, Direct)])?;
    scene.writes_directly(&shared, 0, &page_of(0x33))?;
    scene.reads_directly(&mapping, 0, &page_of(0x33))?;
    drop((mapping, shared, file));
    memory.free()?;
    all_free(scene)
}

fn absent(scene: &mut Scene<'_>) -> Result<()> {
    let session = scene.session()?;
    refused(session.allocate_device_memory(PAGE), libc::ENODEV)?;
    refused(session.open_device_memory(1, false), libc::ENOENT)?;
    // The same session maps files.
    let file = scene.file("file", PAGE)?;
    scene.map_direct(&session, &file, MapFlags::empty()).map(drop)
}

fn limits(scene: &mut Scene<'_>) -> Result<()> {
    let session = scene.session()?;
    refused(session.allocate_device_memory(0), libc::EINVAL)?;
    refused(session.allocate_device_memory(9 * MIB), libc::EFBIG)?;
    refused(session.allocate_device_memory(5 * MIB), libc::EDQUOT)?;
    let memory = session.allocate_device_memory(3 * MIB)?;
    refused(session.allocate_device_memory(2 * MIB), libc::EDQUOT)?;
    refused(memory.grow(5 * MIB), libc::EDQUOT)?;
    memory.grow(4 * MIB)?;
    let mapping = map_all(scene, &memory, MapFlags::WRITE)?;
    scene.writes_directly(&mapping, 3 * MIB, &page_of(0x22))?;
    drop(mapping);
    // A process of the same user, which has 2 MiB left.
    let puppet = Puppet::start(scene, 0)?;
    puppet.obey(&format!("session {}", scene.directory.display()))?;
    let refused_to = |bytes: u64, errno: i32| -> Result<()> {
        let answer = puppet.ask(&format!("allocate {bytes}"))?;
        ensure!(answer == format!("errno {errno}"), "another process of the user is answered `{answer}`");
        Ok(())
    };
    refused_to(3 * MIB, libc::EDQUOT)?;
    puppet.obey(&format!("allocate {}", 2 * MIB))?;
    refused_to(PAGE, libc::EDQUOT)?;
    memory.free()?;
    drop(puppet);
    all_free(scene)
}

fn grow(scene: &mut Scene<'_>) -> Result<()> {
    let session = scene.session()?;
    let memory = session.allocate_device_memory(CHUNK)?;
    let mapping = map_all(scene, &memory, MapFlags::WRITE)?;
    scene.writes_directly(&mapping, 0, &page_of(0x22))?;
    memory.grow(2 * CHUNK)?;
    scene.reads_directly(&mapping, 0, &page_of(0x22))?;
    let whole = map_all(scene, &memory, MapFlags::empty())?;
    scene.reads_directly(&whole, CHUNK, &vec![0; CHUNK as usize])?;
    drop((mapping, whole));
    memory.free()?;
    all_free(scene)
}

fn free_revokes(scene: &mut Scene<'_>) -> Result<()> {
    let owner = scene.session()?;
    let memory = owner.allocate_device_memory(CHUNK)?;
    let id = memory.id();
    let session = RawSession::open(&scene.directory)?;
    let witness = Witness::of_file(scene, session, open_direct(&file_of(scene, &memory), true)?, 0..CHUNK, MapFlags::WRITE)?;
    witness.store(0, &page_of(0x22))?;
    super::revocation::in_order(scene, &witness, Trigger::Unlink, || Ok(memory.free()?))?;
    let mut found = vec![0; LAST_STORE.len()];
    let gone = std::os::unix::fs::FileExt::read_at(&witness.file, &mut found, 0).map_err(|error| error.raw_os_error());
    ensure!(gone == Err(Some(libc::ENOENT)), "freed device memory is read: {gone:?}");
    refused(owner.open_device_memory(id, false), libc::ENOENT)?;
    drop(witness);
    all_free(scene)?;
    // Whoever gets it next finds nothing of it.
    let next = owner.allocate_device_memory(64 * MIB)?;
    let mapping = map_all(scene, &next, MapFlags::empty())?;
    scene.reads_directly(&mapping, 0, &vec![0; 16 * MIB as usize])?;
    drop(mapping);
    next.free()?;
    all_free(scene)
}

fn migrates(scene: &mut Scene<'_>) -> Result<()> {
    let (first, second) = (scene.session()?, scene.session()?);
    let memory = first.allocate_device_memory(4 * MIB)?;
    let mapping = map_all(scene, &memory, MapFlags::WRITE)?;
    scene.writes_directly(&mapping, 0, &vec![0x22; 4 * MIB as usize])?;
    let (told, heard) = std::sync::mpsc::channel();
    mapping.on_revoke(move |revocation| {
        // Nobody listens any more once the case has failed.
        let _ = told.send(revocation.trigger);
    });
    let greedy = second.allocate_device_memory(8 * MIB)?;
    let held = map_all(scene, &greedy, MapFlags::WRITE)?;
    scene.reads_directly(&held, 0, &vec![0; 8 * MIB as usize])?;
    ensure!(heard.recv()? == Some(Trigger::Relocation), "told of another trigger");
    scene.evidence.trigger(Trigger::Relocation);
    ensure!(memory.is_migrated()?, "both are in a device that has room for one");
    scene.reads_by_fallback(&mapping, 0, &vec![0x22; 4 * MIB as usize])?;
    scene.writes(&mapping, PAGE, &page_of(0x33), peerfs_abi::Path::Fallback)?;
    let moved = memory.map(.., MapFlags::WRITE)?;
    scene.expect_map(&moved, &[(0..4 * MIB, Fallback(Reason::ApertureFull))])?;
    drop((mapping, moved, held));
    greedy.free()?;
    let mapping = map_all(scene, &memory, MapFlags::WRITE)?;
    ensure!(!memory.is_migrated()?, "it stays in main memory although there is room");
    scene.reads_directly(&mapping, PAGE, &page_of(0x33))?;
    scene.reads_directly(&mapping, 2 * PAGE, &page_of(0x22))?;
    drop(mapping);
    memory.free()?;
    all_free(scene)
}

fn other_user(scene: &mut Scene<'_>) -> Result<()> {
    let session = scene.session()?;
    let private = session.allocate_device_memory(CHUNK)?;
    let readable = session.allocate_device_memory_with_mode(CHUNK, 0o644)?;
    let public = session.allocate_device_memory_with_mode(CHUNK, 0o666)?;
    let puppet = Puppet::start(scene, NOBODY)?;
    puppet.obey(&format!("session {}", scene.directory.display()))?;
    let open = |access: &str, memory: &DeviceMemory| format!("open {access} {}", file_of(scene, memory).display());
    let denied = format!("errno {}", libc::EACCES);
    for (access, memory) in [("read", &private), ("write", &private), ("write", &readable)] {
        let answer = puppet.ask(&open(access, memory))?;
        ensure!(answer == denied, "to open it ({access}) answers `{answer}`");
    }
    puppet.obey(&open("read", &readable))?;
    puppet.expect_map(scene, 0..CHUNK, MapFlags::empty(), &[(0..CHUNK, Direct)])?;
    puppet.obey("unmap own")?;
    puppet.expect_map(scene, 0..CHUNK, MapFlags::WRITE, &[(0..CHUNK, Fallback(Reason::ReadOnly))])?;
    puppet.obey(&open("write", &public))?;
    puppet.expect_map(scene, 0..CHUNK, MapFlags::WRITE, &[(0..CHUNK, Direct)])?;
    let freed = puppet.ask(&format!("free {}", public.id()))?;
    ensure!(freed == denied, "another user frees it: `{freed}`");
    // A mapping of the owner's is nobody else's either.
    let own = RawSession::open(&scene.directory)?;
    let answer = own.map_calmly(&open_direct(&file_of(scene, &private), true)?, 0, CHUNK, MapFlags::WRITE)?;
    scene.expect_direct(&answer)?;
    let thief = Puppet::start(scene, SOMEBODY)?;
    thief.obey(&format!("session {}", scene.directory.display()))?;
    for segment in direct_segments(&answer) {
        let answer = thief.ask(&format!("steal read {}", segment.grant_id))?;
        ensure!(!answer.starts_with("ok"), "another user takes a grant of it");
    }
    drop((puppet, thief, own, private, readable, public));
    all_free(scene)
}
