//! The table of coherence with the CPU, cell by cell: what a live device mapping does when a program uses the file.

use std::os::unix::fs::FileExt;

use anyhow::{Result, ensure};
use peerfs_abi::{MapFlags, Path, Trigger};
use peerfs_sys::Sharing;

use crate::case::{Case, Setup};
use crate::scene::{CHUNK, PAGE, Scene, Subject, cached_pages, cpu_reads, page_of, store, view};
use crate::witness::Witness;

pub const CASES: &[Case] = &[
    Case::new(
        "cached-read-beside-read",
        "a cached read and a device that reads share the range while nobody can write it",
        Setup::PATIENT,
        read_beside_read,
    ),
    Case::new(
        "writable-open-beside-read",
        "the first writable cached open drops the cached pages and keeps a read mapping",
        Setup::PATIENT,
        open_beside_read,
    ),
    Case::new(
        "direct-handle-beside-read",
        "reads and writes of a direct handle leave a read mapping alone and both see the same bytes",
        Setup::PATIENT,
        direct_beside_read,
    ),
    Case::new(
        "cached-read-beside-read-and-writer",
        "beside a writable cached handle a cached read revokes a read mapping first",
        Setup::PATIENT,
        read_beside_writer,
    )
    .revoking(Trigger::CpuAccess),
    Case::new(
        "cached-write-beside-read-and-writer",
        "a buffered write revokes a read mapping first",
        Setup::PATIENT,
        write_beside_reader,
    )
    .revoking(Trigger::CpuAccess),
    Case::new(
        "writable-open-beside-read-and-writer",
        "a further writable open leaves a read mapping, whose pages are not cached",
        Setup::PATIENT,
        further_open,
    ),
    Case::new(
        "cached-read-beside-write",
        "a cached read revokes a write mapping first and returns what the device stored",
        Setup::PATIENT,
        read_beside_write,
    )
    .revoking(Trigger::CpuAccess),
    Case::new(
        "cached-write-beside-write",
        "a buffered write revokes a write mapping first and loses no byte of it",
        Setup::PATIENT,
        write_beside_write,
    )
    .revoking(Trigger::CpuAccess),
    Case::new(
        "writable-open-beside-write",
        "a writable open leaves a write mapping until its first touch",
        Setup::PATIENT,
        open_beside_write,
    ),
    Case::new(
        "direct-handle-beside-write",
        "reads and writes of a direct handle leave a write mapping alone and both see the same bytes",
        Setup::PATIENT,
        direct_beside_write,
    ),
    Case::new(
        "pages-dropped-at-map",
        "a map writes dirty pages of its range back and drops every page of it",
        Setup::USUAL,
        dropped_at_map,
    ),
    Case::new("other-chunk-untouched", "an access to one chunk leaves the mapping of another alone", Setup::PATIENT, other_chunk),
    Case::new(
        "writable-open-beside-revocation",
        "a writable open drops pages also beside a mapping that is just being taken back",
        Setup::PATIENT,
        open_beside_revocation,
    ),
];

/// Runs `touch`, which must make the server take the mapping back, and acknowledges.
fn revoked_by_touch(scene: &Scene<'_>, witness: &Witness, touch: impl FnOnce() -> Result<()> + Send) -> Result<()> {
    super::revocation::in_order(scene, witness, Trigger::CpuAccess, touch)
}

fn read_beside_read(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 8 * PAGE)?;
    let witness = Witness::map(scene, &file, 0..8 * PAGE, MapFlags::empty())?;
    let reader = file.reader()?;
    cpu_reads(&reader, PAGE, file.page(1))?;
    ensure!(cached_pages(&reader)? > 0, "the read was to be cached");
    witness.expect_undisturbed(scene)?;
    ensure!(witness.load(PAGE, PAGE as usize)? == file.page(1), "the device reads other bytes");
    Ok(())
}

fn open_beside_read(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 8 * PAGE)?;
    let witness = Witness::map(scene, &file, 0..8 * PAGE, MapFlags::empty())?;
    let reader = file.reader()?;
    cpu_reads(&reader, 0, &file.content)?;
    let writer = file.writer()?;
    ensure!(cached_pages(&writer)? == 0, "pages stay cached beside a mapping and a writer");
    witness.expect_undisturbed(scene)?;
    // From now on the first touch is heard of.
    let shared = view(&writer, Sharing::Shared)?;
    revoked_by_touch(scene, &witness, || store(&shared, 5 * PAGE, &page_of(0x22)))?;
    cpu_reads(&reader, 5 * PAGE, &page_of(0x22))
}

fn direct_beside_read(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 8 * PAGE)?;
    let witness = Witness::map(scene, &file, 0..8 * PAGE, MapFlags::empty())?;
    for (number, flags) in [(1, libc::O_DIRECT | libc::O_NONBLOCK), (2, libc::O_DIRECT)] {
        let handle = file.open(flags)?;
        cpu_reads(&handle, number * PAGE, file.page(number))?;
        handle.write_all_at(&page_of(0x33), number * PAGE)?;
        cpu_reads(&handle, number * PAGE, &page_of(0x33))?;
        ensure!(witness.load(number * PAGE, 4096)? == page_of(0x33), "the device reads other bytes, flags {flags:#o}");
    }
    witness.expect_undisturbed(scene)
}

fn read_beside_writer(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 8 * PAGE)?;
    let _writer = file.writer()?;
    let reader = file.reader()?;
    let witness = Witness::map(scene, &file, 0..8 * PAGE, MapFlags::empty())?;
    revoked_by_touch(scene, &witness, || cpu_reads(&reader, PAGE, file.page(1)))
}

fn write_beside_reader(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 8 * PAGE)?;
    let writer = file.writer()?;
    let session = scene.session()?;
    let mapping = scene.map_direct(&session, &file, MapFlags::empty())?;
    let witness = Witness::map(scene, &file, 0..8 * PAGE, MapFlags::empty())?;
    revoked_by_touch(scene, &witness, || Ok(writer.write_all_at(&page_of(0x22), PAGE)?))?;
    scene.reads_by_fallback(&mapping, PAGE, &page_of(0x22))
}

fn further_open(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 8 * PAGE)?;
    let _writer = file.writer()?;
    let witness = Witness::map(scene, &file, 0..8 * PAGE, MapFlags::empty())?;
    let second = file.writer()?;
    ensure!(cached_pages(&second)? == 0, "pages of the range are cached");
    witness.expect_undisturbed(scene)
}

fn read_beside_write(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 8 * PAGE)?;
    let reader = file.reader()?;
    cpu_reads(&reader, 7 * PAGE, file.page(7))?;
    let witness = Witness::map(scene, &file, 0..8 * PAGE, MapFlags::WRITE)?;
    ensure!(cached_pages(&reader)? == 0, "pages stay cached beside a device that writes");
    witness.store(7 * PAGE, &page_of(0x22))?;
    let found = std::sync::Mutex::new(Vec::new());
    revoked_by_touch(scene, &witness, || {
        let mut page = page_of(0);
        reader.read_exact_at(&mut page, 7 * PAGE)?;
        *found.lock().expect("no panic") = page;
        Ok(())
    })?;
    // The last store of `in_order` is in the first page.
    ensure!(*found.lock().expect("no panic") == page_of(0x22), "the read misses the device's store");
    Ok(())
}

fn write_beside_write(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 16 * PAGE)?;
    let writer = file.writer()?;
    let witness = Witness::map(scene, &file, 0..16 * PAGE, MapFlags::WRITE)?;
    witness.store(8 * PAGE, &page_of(0x22))?;
    witness.store(9 * PAGE, &page_of(0x33))?;
    // A whole page: a part of one would revoke also where buffered writes did not, since the block is read, changed and
    // written as a whole (`partial-write`).
    revoked_by_touch(scene, &witness, || Ok(writer.write_all_at(&page_of(0x44), 8 * PAGE)?))?;
    cpu_reads(&file.reader()?, 8 * PAGE, &page_of(0x44))?;
    cpu_reads(&file.reader()?, 9 * PAGE, &page_of(0x33))
}

fn open_beside_write(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 8 * PAGE)?;
    let witness = Witness::map(scene, &file, 0..8 * PAGE, MapFlags::WRITE)?;
    let writer = file.writer()?;
    witness.expect_undisturbed(scene)?;
    witness.store(5 * PAGE, &page_of(0x22))?;
    revoked_by_touch(scene, &witness, || Ok(writer.write_all_at(&page_of(0x33), 6 * PAGE)?))?;
    cpu_reads(&writer, 5 * PAGE, &page_of(0x22))
}

fn direct_beside_write(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 16 * PAGE)?;
    let witness = Witness::map(scene, &file, 0..16 * PAGE, MapFlags::WRITE)?;
    for (number, flags) in [(1, libc::O_DIRECT | libc::O_NONBLOCK), (3, libc::O_DIRECT)] {
        let handle = file.open(flags)?;
        witness.store(number * PAGE, &page_of(0x22))?;
        cpu_reads(&handle, number * PAGE, &page_of(0x22))?;
        handle.write_all_at(&page_of(0x33), (number + 1) * PAGE)?;
        ensure!(witness.load((number + 1) * PAGE, 4096)? == page_of(0x33), "the device reads other bytes, flags {flags:#o}");
    }
    witness.expect_undisturbed(scene)
}

fn dropped_at_map(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 8 * PAGE)?;
    let writer = file.writer()?;
    // The write leaves the page in the cache, so no store to it is heard of.
    writer.write_all_at(&page_of(0x22), 3 * PAGE)?;
    let shared = view(&writer, Sharing::Shared)?;
    store(&shared, 3 * PAGE, &page_of(0x33))?;
    store(&shared, 3 * PAGE + 10, &[0x44; 10])?;
    let mut expected = page_of(0x33);
    expected[10..20].fill(0x44);
    let session = scene.session()?;
    for flags in [MapFlags::empty(), MapFlags::WRITE] {
        let mapping = scene.map_direct(&session, &file, flags)?;
        ensure!(cached_pages(&writer)? == 0, "pages stay cached");
        scene.reads_directly(&mapping, 3 * PAGE, &expected)?;
        drop(mapping);
        crate::scene::loads(&shared, 3 * PAGE, &expected)?;
    }
    Ok(())
}

fn other_chunk(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 2 * CHUNK)?;
    let near = Witness::map(scene, &file, 0..CHUNK, MapFlags::WRITE)?;
    let far = Witness::map(scene, &file, CHUNK..2 * CHUNK, MapFlags::WRITE)?;
    let writer = file.writer()?;
    revoked_by_touch(scene, &near, || Ok(writer.write_all_at(&page_of(0x22), PAGE)?))?;
    far.expect_undisturbed(scene)
}

fn open_beside_revocation(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 8 * PAGE)?;
    let witness = Witness::map(scene, &file, 0..8 * PAGE, MapFlags::empty())?;
    cpu_reads(&file.reader()?, 0, &file.content)?;
    std::thread::scope(|scope| {
        let revoker = scope.spawn(|| file.handle.revoke(..));
        let event = witness.expect_event(scene, Trigger::Administrator)?;
        // The importer has its memory until it acknowledges, so a silent store would be hidden from it.
        let cached = cached_pages(&file.writer()?)?;
        let early = !revoker.is_finished();
        witness.acknowledge(&event)?;
        revoker.join().map_err(|_| anyhow::anyhow!("the revoker panicked"))??;
        ensure!(early && cached == 0, "{cached} pages are cached beside a mapping and a writer");
        Ok(())
    })
}

/// What the device stores after a page came back into the cache goes through the filesystem, which drops the page.
pub fn stores_after_the_cut(scene: &Scene<'_>, file: &Subject) -> Result<()> {
    let reader = file.reader()?;
    let session = scene.session()?;
    let mapping = scene.map_direct(&session, file, MapFlags::WRITE)?;
    scene.writes_directly(&mapping, PAGE, &page_of(0x22))?;
    cpu_reads(&reader, PAGE, &page_of(0x22))?;
    scene.writes(&mapping, PAGE, &page_of(0x33), Path::Fallback)?;
    cpu_reads(&reader, PAGE, &page_of(0x33))
}
