//! Mapping by address: what the processor has mapped is what the device gets, for as long as the processor has it.

use std::ops::Range;

use anyhow::{Context, Result, ensure};
use peerfs_abi::{MapFlags, Path, Reason};
use peerfs_client::{AddressMapping, Backing, CpuMapping, Error, Protection, Session, Sharing};
use peerfs_sys::Reservation;

use crate::case::{Case, Setup};
use crate::evidence::Way::{self, Direct, Fallback};
use crate::scene::{PAGE, Scene, Subject, page_of, same_bytes};

const BYTES: usize = PAGE as usize;

pub const CASES: &[Case] = &[
    Case::new(
        "address-resolves",
        "a range of addresses resolves to the files behind it: several mappings, offsets, gaps, foreign memory, holes in a file",
        Setup::USUAL,
        resolves,
    ),
    Case::new(
        "address-through-library",
        "munmap, mremap and mprotect through the library end the device's side first, and not under a guard",
        Setup::USUAL,
        through_library,
    ),
    Case::new(
        "address-munmap-unseen",
        "a munmap behind the library's back is found before the next access",
        Setup::USUAL,
        munmap_unseen,
    ),
    Case::new(
        "address-mprotect-unseen",
        "so is an mprotect that leaves the processor less than the device has",
        Setup::USUAL,
        mprotect_unseen,
    ),
    Case::new("address-mremap-unseen", "so is an mremap that moves the mapping", Setup::USUAL, mremap_unseen),
    Case::new(
        "address-map-fixed-unseen",
        "so is a MAP_FIXED of another file or another place, also by a guard that is held; the same again is no change",
        Setup::USUAL,
        map_fixed_unseen,
    ),
    Case::new(
        "address-end-of-file",
        "by address too the last page ends in zeros, nothing is behind it, and no store extends the file",
        Setup::USUAL,
        end_of_file,
    ),
];

fn at(cpu: &CpuMapping, page: usize) -> u64 {
    (cpu.address() + page * BYTES) as u64
}

fn reader(file: &Subject, first_page: u64, pages: usize) -> Result<CpuMapping> {
    Ok(CpuMapping::map(file.reader()?, first_page * PAGE, pages * BYTES, Sharing::Shared, false)?)
}

fn writer(file: &Subject, pages: usize) -> Result<CpuMapping> {
    Ok(CpuMapping::map(file.writer()?, 0, pages * BYTES, Sharing::Shared, true)?)
}

fn map(session: &Session, cpu: &CpuMapping, flags: MapFlags) -> Result<AddressMapping> {
    Ok(session.map_address(cpu.address() as u64, cpu.length() as u64, flags)?)
}

/// The device reads this page there, this way.
fn reads(scene: &Scene<'_>, mapping: &AddressMapping, address: u64, expected: &[u8], way: Way) -> Result<()> {
    let mut found = vec![0; expected.len()];
    let moved = mapping.read_at(address, &mut found)?;
    same_bytes(&found, expected).with_context(|| format!("the device reads at address {address:#x}"))?;
    let direct = moved.total() - moved.fallback;
    match way {
        Direct => {
            scene.expect_moved(moved, moved.total(), 0)?;
            scene.evidence.path(if scene.grants() { scene.direct_path() } else { Path::Fallback });
        }
        Fallback(_) => ensure!(direct == 0 && moved.fallback > 0, "bytes went as {moved:?}"),
    }
    Ok(())
}

/// The stretch at this address is of a file, from this offset on, all decided this way.
fn expect_file(
    scene: &Scene<'_>,
    mapping: &AddressMapping,
    address: u64,
    offset: u64,
    expected: &[(Range<u64>, Way)],
) -> Result<()> {
    let stretches = mapping.stretches();
    let stretch = stretches.iter().find(|stretch| stretch.addresses.contains(&address)).context("nothing is there")?;
    let Backing::File { file_offset, segments, .. } = &stretch.backing else { anyhow::bail!("{:?} is there", stretch.backing) };
    ensure!(*file_offset == offset, "it is offset {file_offset} of the file and not {offset}");
    scene.expect_segments(segments, expected)
}

/// The device's side of this address has ended, and stays so.
fn expect_ended(mapping: &AddressMapping, address: u64) -> Result<()> {
    for _ in 0..2 {
        let answer = mapping.read_at(address, &mut [0]);
        ensure!(matches!(answer, Err(Error::AddressChanged { .. })), "an access answers {answer:?}");
    }
    Ok(())
}

fn expect_nothing(mapping: &AddressMapping, address: u64) -> Result<()> {
    let answer = mapping.read_at(address, &mut [0]);
    ensure!(matches!(answer, Err(Error::Address { .. })), "an access where nothing is answers {answer:?}");
    Ok(())
}

/// Nothing is mapped on the server any more.
fn none_mapped(scene: &Scene<'_>) -> Result<()> {
    ensure!(scene.mount.info()?["mappings"] == 0, "the device's side lives on in the server");
    Ok(())
}

fn resolves(scene: &mut Scene<'_>) -> Result<()> {
    let (one, two) = (scene.file("one", 16 * PAGE)?, scene.file("two", 16 * PAGE)?);
    // A hole in the file: no block, so by fallback.
    nix::fcntl::fallocate(
        one.writer()?,
        nix::fcntl::FallocateFlags::FALLOC_FL_PUNCH_HOLE | nix::fcntl::FallocateFlags::FALLOC_FL_KEEP_SIZE,
        3 * PAGE as i64,
        PAGE as i64,
    )?;
    // Pages 0 to 3: one, from page 2 on; 4: nothing; 5: two, page 3; 6: foreign; 7: one again.
    let mut cpu = reader(&one, 2, 8)?;
    let foreign = tempfile::tempfile()?;
    std::os::unix::fs::FileExt::write_at(&foreign, &page_of(0x77), 0)?;
    cpu.replace(5 * BYTES..6 * BYTES, two.reader()?, 3 * PAGE)?;
    cpu.replace(6 * BYTES..7 * BYTES, &foreign, 0)?;
    cpu.unmap(4 * BYTES..5 * BYTES)?;
    let session = scene.session()?;
    let mapping = map(&session, &cpu, MapFlags::empty())?;
    let first = [(2 * PAGE..3 * PAGE, Direct), (3 * PAGE..4 * PAGE, Fallback(Reason::Hole)), (4 * PAGE..6 * PAGE, Direct)];
    expect_file(scene, &mapping, at(&cpu, 0), 2 * PAGE, &first)?;
    expect_file(scene, &mapping, at(&cpu, 5), 3 * PAGE, &[(3 * PAGE..4 * PAGE, Direct)])?;
    expect_file(scene, &mapping, at(&cpu, 7), 9 * PAGE, &[(9 * PAGE..10 * PAGE, Direct)])?;
    reads(scene, &mapping, at(&cpu, 0), one.page(2), Direct)?;
    reads(scene, &mapping, at(&cpu, 1), &page_of(0), Fallback(Reason::Hole))?;
    reads(scene, &mapping, at(&cpu, 2), one.page(4), Direct)?;
    reads(scene, &mapping, at(&cpu, 5), two.page(3), Direct)?;
    reads(scene, &mapping, at(&cpu, 7), one.page(9), Direct)?;
    expect_nothing(&mapping, at(&cpu, 4))?;
    expect_nothing(&mapping, at(&cpu, 8))?;
    // Across three mappings, the second of which is no file of the mount.
    let mut all = vec![0; 3 * BYTES];
    let moved = mapping.read_at(at(&cpu, 5), &mut all)?;
    same_bytes(&all, &[two.page(3), &page_of(0x77), one.page(9)].concat())?;
    scene.expect_moved(moved, 2 * PAGE, PAGE).context("foreign memory")?;
    ensure!(matches!(mapping.write_at(at(&cpu, 0), b"x"), Err(Error::ReadOnly)), "written without WRITE");
    Ok(())
}

fn through_library(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 16 * PAGE)?;
    scene.needs_window(&file)?;
    let session = scene.session()?;
    let mut cpu = writer(&file, 8)?;
    let mapping = map(&session, &cpu, MapFlags::WRITE)?;
    reads(scene, &mapping, at(&cpu, 0), file.page(0), Direct)?;
    let guard = mapping.access(at(&cpu, 0)..at(&cpu, 1))?;
    let refused = mapping.munmap(&mut cpu, 0..BYTES);
    ensure!(matches!(refused, Err(Error::AddressInUse { .. })), "munmap under a guard answers {refused:?}");
    ensure!(guard.still_valid(), "the refused change ended the guard");
    drop(guard);
    mapping.munmap(&mut cpu, 2 * BYTES..3 * BYTES)?;
    expect_nothing(&mapping, at(&cpu, 2))?;
    reads(scene, &mapping, at(&cpu, 3), file.page(3), Direct)?;
    mapping.mprotect(&mut cpu, 5 * BYTES..6 * BYTES, Protection::Read)?;
    let refused = mapping.write_at(at(&cpu, 5), b"x");
    ensure!(matches!(refused, Err(Error::Address { .. })), "a store where the processor may not: {refused:?}");
    mapping.mprotect(&mut cpu, 5 * BYTES..6 * BYTES, Protection::ReadWrite)?;
    ensure!(mapping.write_at(at(&cpu, 5), &page_of(0x22))?.total() == PAGE, "the page stays closed");
    drop((mapping, cpu));
    let mut cpu = writer(&file, 4)?;
    let mapping = map(&session, &cpu, MapFlags::WRITE)?;
    mapping.mremap(&mut cpu, 12 * BYTES)?;
    reads(scene, &mapping, at(&cpu, 11), file.page(11), Direct)?;
    reads(scene, &mapping, at(&cpu, 5), &page_of(0x22), Direct)?;
    mapping.mremap(&mut cpu, 2 * BYTES)?;
    expect_nothing(&mapping, at(&cpu, 2))?;
    reads(scene, &mapping, at(&cpu, 1), file.page(1), Direct)?;
    drop(mapping);
    none_mapped(scene)
}

fn munmap_unseen(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 16 * PAGE)?;
    let session = scene.session()?;
    let mut cpu = writer(&file, 16)?;
    let mapping = map(&session, &cpu, MapFlags::WRITE)?;
    reads(scene, &mapping, at(&cpu, 8), file.page(8), Direct)?;
    cpu.unmap(8 * BYTES..9 * BYTES)?;
    reads(scene, &mapping, at(&cpu, 1), file.page(1), Direct)?;
    expect_ended(&mapping, at(&cpu, 8))?;
    none_mapped(scene)
}

fn mprotect_unseen(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 4 * PAGE)?;
    let session = scene.session()?;
    let mut cpu = writer(&file, 4)?;
    let mapping = map(&session, &cpu, MapFlags::WRITE)?;
    cpu.protect(0..BYTES, Protection::Read)?;
    let answer = mapping.write_at(at(&cpu, 0), b"x");
    ensure!(matches!(answer, Err(Error::AddressChanged { .. })), "a store answers {answer:?}");
    none_mapped(scene)?;
    drop(mapping);
    // For reading it is enough, until that goes too.
    let mapping = map(&session, &cpu, MapFlags::empty())?;
    reads(scene, &mapping, at(&cpu, 0), file.page(0), Direct)?;
    cpu.protect(0..BYTES, Protection::None)?;
    expect_ended(&mapping, at(&cpu, 0))?;
    // The other pages are another mapping of the processor's by now.
    reads(scene, &mapping, at(&cpu, 1), file.page(1), Direct)
}

fn mremap_unseen(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 4 * PAGE)?;
    let session = scene.session()?;
    let mut cpu = reader(&file, 0, 4)?;
    let mapping = map(&session, &cpu, MapFlags::empty())?;
    let old = at(&cpu, 1);
    reads(scene, &mapping, old, file.page(1), Direct)?;
    cpu.remap_to(Reservation::anywhere(4 * BYTES)?)?;
    expect_ended(&mapping, old)?;
    none_mapped(scene)?;
    let mapping = map(&session, &cpu, MapFlags::empty())?;
    reads(scene, &mapping, at(&cpu, 1), file.page(1), Direct)
}

fn map_fixed_unseen(scene: &mut Scene<'_>) -> Result<()> {
    let (file, other) = (scene.file("file", 16 * PAGE)?, scene.file("other", 16 * PAGE)?);
    scene.needs_window(&file)?;
    let session = scene.session()?;
    for replacement in [&other, &file] {
        let mut cpu = reader(&file, 0, 4)?;
        let mapping = map(&session, &cpu, MapFlags::empty())?;
        let guard = mapping.access(at(&cpu, 1)..at(&cpu, 2))?;
        ensure!(guard.still_valid(), "the guard is stale from the start");
        cpu.replace(BYTES..2 * BYTES, replacement.reader()?, 5 * PAGE)?;
        ensure!(!guard.still_valid(), "a guard does not notice that its address leads elsewhere");
        drop(guard);
        expect_ended(&mapping, at(&cpu, 1))?;
        none_mapped(scene)?;
    }
    let mut cpu = reader(&file, 0, 4)?;
    let mapping = map(&session, &cpu, MapFlags::empty())?;
    cpu.replace(BYTES..2 * BYTES, file.reader()?, PAGE)?;
    reads(scene, &mapping, at(&cpu, 1), file.page(1), Direct)
}

fn end_of_file(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 3 * PAGE + 100)?;
    let session = scene.session()?;
    let cpu = writer(&file, 6)?;
    let mapping = map(&session, &cpu, MapFlags::WRITE)?;
    expect_file(
        scene,
        &mapping,
        at(&cpu, 0),
        0,
        &[(0..3 * PAGE + 100, Direct), (3 * PAGE + 100..6 * PAGE, Fallback(Reason::BeyondEof))],
    )?;
    let mut last = file.page(3).to_vec();
    last.resize(BYTES, 0);
    let mut found = page_of(1);
    mapping.read_at(at(&cpu, 3), &mut found)?;
    same_bytes(&found, &last)?;
    expect_nothing(&mapping, at(&cpu, 4))?;
    let refused = mapping.write_at(at(&cpu, 3) + 96, &[1; 8]);
    ensure!(matches!(refused, Err(Error::Address { .. })), "a store across the end answers {refused:?}");
    ensure!(std::fs::metadata(&file.path)?.len() == 3 * PAGE + 100, "a store extends the file");
    file.expect_content()
}
