//! Reasons of the path from the importer to the device, and of the importer itself.

use std::os::fd::OwnedFd;

use anyhow::{Result, ensure};
use peerfs_abi::ioctl::{self, Map};
use peerfs_abi::{ImporterFlags, MapFlags, Reason};
use peerfs_client::{ImporterSpec, Session};

use super::reasons_device::limited;
use crate::case::{Case, Setup};
use crate::evidence::Way::{Direct, Fallback};
use crate::kit::raw::{open_direct, request};
use crate::puppet::Puppet;
use crate::scene::{CHUNK, PAGE, Scene, Subject};
use crate::topology::Topology;

const ON_BUS: Setup = Setup::USUAL.topology(Topology::Example);

pub const CASES: &[Case] = &[
    Case::new(
        "reason-notifier-required",
        "a static importer, which cannot be revoked, is refused without PIN with NotifierRequired",
        Setup::USUAL,
        notifier_required,
    )
    .refusing(Reason::NotifierRequired),
    Case::new(
        "reason-importer-quota",
        "an importer that holds as many grants as it may is refused with ImporterQuota",
        Setup::with("importer_grants=2"),
        importer_quota,
    )
    .refusing(Reason::ImporterQuota),
    Case::new(
        "reason-stale-context",
        "a context whose maker has ended is refused with StaleContext by map and with ESTALE by query",
        Setup::USUAL,
        stale_context,
    )
    .refusing(Reason::StaleContext),
    Case::new("peer-path-found", "an importer on the bus with a way to the device maps directly", ON_BUS, path_found),
    Case::new(
        "reason-no-peer-path",
        "an importer to whose address no way is known is refused with NoPeerPath",
        ON_BUS,
        no_peer_path,
    )
    .refusing(Reason::NoPeerPath),
    Case::new(
        "reason-dma-mask-exceeded",
        "an importer that cannot put out the aperture's addresses is refused with DmaMaskExceeded",
        ON_BUS,
        dma_mask,
    )
    .refusing(Reason::DmaMaskExceeded),
    Case::new(
        "reason-iommu-rejected",
        "an importer whose IOMMU maps no peers is refused with IommuRejected",
        ON_BUS,
        iommu_rejected,
    )
    .refusing(Reason::IommuRejected),
    Case::new(
        "reason-no-grant-object",
        "memory that no kernel object can hand to a process is refused with NoGrantObject",
        Setup::USUAL.topology(Topology::NotGrantable),
        no_grant_object,
    )
    .refusing(Reason::NoGrantObject),
    Case::new(
        "reason-aperture-read-only",
        "an aperture that peers may only read refuses WRITE and ATOMIC, not reading",
        Setup::USUAL.topology(Topology::NotWritable),
        aperture_read_only,
    )
    .refusing(Reason::WriteForbidden),
];

fn notifier_required(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", PAGE)?;
    let refused = [(0..PAGE, Fallback(Reason::NotifierRequired))];
    scene.expect_table(&file.handle.query(.., MapFlags::empty(), "static")?, &refused)?;
    let session = limited(scene, ImporterFlags::WRITE)?;
    let mapping = session.map(&file.handle, .., MapFlags::empty())?;
    scene.expect_map(&mapping, &refused)?;
    scene.reads_by_fallback(&mapping, 0, &file.content)
}

fn importer_quota(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 3 * CHUNK)?;
    // The importer in the server may hold no more in one call.
    let reading = file.handle.read_by_server(0, 3 * CHUNK)?;
    let split = (reading.bytes() - reading.fallback, reading.fallback, reading.reason);
    ensure!(split == (2 * CHUNK, CHUNK, Some(Reason::ImporterQuota)), "the server reads {reading:?}");
    scene.evidence.reason(Reason::ImporterQuota);
    scene.needs_window(&scene.file("small", PAGE)?)?;
    let session = scene.session()?;
    let mapping = session.map(&file.handle, .., MapFlags::empty())?;
    let expected = [(0..2 * CHUNK, Direct), (2 * CHUNK..3 * CHUNK, Fallback(Reason::ImporterQuota))];
    scene.expect_map(&mapping, &expected)?;
    scene.reads_by_fallback(&mapping, 2 * CHUNK, &file.content[2 * CHUNK as usize..])?;
    let table = session.query(&file.handle, .., MapFlags::empty())?;
    scene.expect_table(&table, &[(0..3 * CHUNK, Fallback(Reason::ImporterQuota))])?;
    // Another importer has its own, and what is given back counts no longer.
    scene.expect_map(&scene.session()?.map(&file.handle, .., MapFlags::empty())?, &expected)?;
    drop(mapping);
    scene.expect_map(&session.map(&file.handle, 2 * CHUNK.., MapFlags::empty())?, &[(2 * CHUNK..3 * CHUNK, Direct)])
}

/// A context that was good until its maker ended, and a session that outlives it.
fn widowed(scene: &Scene<'_>, file: &Subject) -> Result<(u64, OwnedFd)> {
    let mut maker = Puppet::start(scene, 0)?;
    maker.obey(&format!("open read {}", file.path.display()))?;
    maker.obey(&format!("session {}", scene.directory.display()))?;
    maker.expect_map(scene, 0..PAGE, MapFlags::empty(), &[(0..PAGE, Direct)])?;
    // A child of fork has a copy of its address space while the maker lives.
    maker.expect_said(scene, "child fork", 0..PAGE, &[(0..PAGE, Fallback(Reason::StaleContext))])?;
    let (context, session) = (maker.obey("context")?.parse()?, maker.take_session()?);
    maker.end()?;
    Ok((context, session))
}

fn stale_context(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", PAGE)?;
    let handle = open_direct(&file.path, false)?;
    let (context, _session) = widowed(scene, &file)?;
    let ask = |command: u32, context: u64, flags: MapFlags| -> std::io::Result<Box<Map>> {
        let mut argument = request(&handle, 0, PAGE, flags);
        argument.context_id = context;
        peerfs_sys::ioctl(&handle, command, &mut *argument)?;
        Ok(argument)
    };
    // One that never was is none either.
    for context in [context, context + 1000] {
        let answer = ask(ioctl::MAP, context, MapFlags::empty())?;
        ensure!(answer.mapping_id == 0, "a mapping was made");
        scene.expect_answer(&answer, &[(0..PAGE, Fallback(Reason::StaleContext))])?;
        // There is no importer left to decide for.
        for (command, flags) in [(ioctl::QUERY, MapFlags::empty()), (ioctl::MAP, MapFlags::QUERY)] {
            let refused = ask(command, context, flags).err().and_then(|error| error.raw_os_error());
            ensure!(refused == Some(libc::ESTALE), "a query answers {refused:?}");
        }
    }
    Ok(())
}

/// What an importer at this address is answered, by query and by map, and that it reads the same bytes.
fn at(scene: &Scene<'_>, address: &str, dma_bits: u32, expected: crate::evidence::Way) -> Result<()> {
    let name = format!("file-{}-{dma_bits}", address.replace([':', '.'], "-"));
    let file = scene.file(&name, PAGE)?;
    let spec = ImporterSpec { name: "dev".into(), pci_address: Some(address.into()), dma_bits, ..ImporterSpec::cpu() };
    let session = Session::open(&scene.directory, spec)?;
    scene.expect_table(&session.query(&file.handle, .., MapFlags::empty())?, &[(0..PAGE, expected)])?;
    let mapping = session.map(&file.handle, .., MapFlags::empty())?;
    scene.expect_map(&mapping, &[(0..PAGE, expected)])?;
    match expected {
        Direct => scene.reads_directly(&mapping, 0, &file.content),
        Fallback(_) => scene.reads_by_fallback(&mapping, 0, &file.content),
    }
}

fn path_found(scene: &mut Scene<'_>) -> Result<()> {
    at(scene, "0000:44:00.0", 64, Direct)?;
    at(scene, "0000:45:00.0", 64, Direct)
}

fn no_peer_path(scene: &mut Scene<'_>) -> Result<()> {
    at(scene, "0000:01:00.0", 64, Fallback(Reason::NoPeerPath))?;
    at(scene, "0000:99:00.0", 64, Fallback(Reason::NoPeerPath))
}

fn dma_mask(scene: &mut Scene<'_>) -> Result<()> {
    at(scene, "0000:44:00.1", 64, Fallback(Reason::DmaMaskExceeded))?;
    // The importer's own limit counts too, and for software as well.
    at(scene, "0000:44:00.0", 32, Fallback(Reason::DmaMaskExceeded))?;
    let file = scene.file("file", PAGE)?;
    let narrow = Session::open(&scene.directory, ImporterSpec { dma_bits: 31, ..ImporterSpec::cpu() })?;
    scene.expect_map(&narrow.map(&file.handle, .., MapFlags::empty())?, &[(0..PAGE, Fallback(Reason::DmaMaskExceeded))])
}

fn iommu_rejected(scene: &mut Scene<'_>) -> Result<()> {
    at(scene, "0000:c1:00.0", 64, Fallback(Reason::IommuRejected))
}

fn no_grant_object(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", PAGE)?;
    let session = scene.session()?;
    let mapping = session.map(&file.handle, .., MapFlags::empty())?;
    scene.expect_map(&mapping, &[(0..PAGE, Fallback(Reason::NoGrantObject))])?;
    scene.reads_by_fallback(&mapping, 0, &file.content)
}

fn aperture_read_only(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", PAGE)?;
    let session = scene.session()?;
    for flags in [MapFlags::WRITE, MapFlags::ATOMIC] {
        let mapping = session.map(&file.handle, .., flags)?;
        // Atomic operations write.
        scene.expect_map(&mapping, &[(0..PAGE, Fallback(Reason::WriteForbidden))])?;
    }
    let refusals = session.query(&file.handle, .., MapFlags::ATOMIC)?.segments[0].refusals;
    ensure!(refusals.contains(Reason::AtomicUnsupported), "{refusals:?}");
    scene.map_direct(&session, &file, MapFlags::empty()).map(drop)
}
