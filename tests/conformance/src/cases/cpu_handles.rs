//! Handles and mmaps of every kind beside a device mapping: what FUSE never tells of.

use std::os::unix::fs::FileExt;

use anyhow::{Result, ensure};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use peerfs_abi::MapFlags;
use peerfs_sys::{FileView, Sharing};

use crate::case::{Case, Setup};
use crate::scene::{PAGE, Scene, cached_pages, cpu_reads, loads, page_of, store, view};

pub const CASES: &[Case] = &[
    Case::new(
        "silent-mmap-stores",
        "stores to a page that a buffered write left in the cache reach the device",
        Setup::USUAL,
        silent_stores,
    ),
    Case::new(
        "mmap-loads-see-device-stores",
        "loads of a shared mmap see what the device stored",
        Setup::USUAL,
        loads_see_stores,
    ),
    Case::new(
        "fallback-after-cached-read",
        "after a cached read the device's stores reach the program by fallback",
        Setup::USUAL,
        fallback_after_read,
    ),
    Case::new("o-direct-mmapped", "an O_DIRECT handle that is mmapped counts as a cached writer", Setup::USUAL, o_direct_mmapped),
    Case::new(
        "fcntl-clears-o-direct",
        "a handle whose O_DIRECT fcntl clears unseen counts as a cached writer all along",
        Setup::USUAL,
        fcntl_clears,
    ),
    Case::new(
        "direct-handle-stays-direct",
        "the library's handle stays direct when fcntl clears its O_DIRECT",
        Setup::USUAL,
        direct_stays,
    ),
    Case::new(
        "direct-handle-refuses-shared-mmap",
        "shared mmap of a direct handle is refused with ENODEV",
        Setup::USUAL,
        refuses_shared,
    ),
    Case::new(
        "private-mmap",
        "a private mmap of a direct handle sees what the device stored, and its pages count as cached",
        Setup::USUAL,
        private_mmap,
    ),
];

fn silent_stores(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 8 * PAGE)?;
    let writer = file.writer()?;
    writer.write_all_at(&page_of(0x22), 3 * PAGE)?;
    let shared = view(&writer, Sharing::Shared)?;
    store(&shared, 3 * PAGE, &page_of(0x33))?;
    store(&shared, 3 * PAGE, &page_of(0x44))?;
    let session = scene.session()?;
    let mapping = scene.map_direct(&session, &file, MapFlags::empty())?;
    scene.reads_directly(&mapping, 3 * PAGE, &page_of(0x44))?;
    // The page left the cache with the map, so the next store is heard of: by the READ that it needs.
    store(&shared, 3 * PAGE, &page_of(0x55))?;
    scene.reads_by_fallback(&mapping, 3 * PAGE, &page_of(0x55))?;
    let again = scene.map_direct(&session, &file, MapFlags::empty())?;
    scene.reads_directly(&again, 3 * PAGE, &page_of(0x55))
}

fn loads_see_stores(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 8 * PAGE)?;
    let writer = file.writer()?;
    let shared = view(&writer, Sharing::Shared)?;
    loads(&shared, 7 * PAGE, file.page(7))?;
    let session = scene.session()?;
    let mapping = scene.map_direct(&session, &file, MapFlags::WRITE)?;
    scene.writes_directly(&mapping, 7 * PAGE, &page_of(0x22))?;
    loads(&shared, 7 * PAGE, &page_of(0x22))?;
    scene.reads_by_fallback(&mapping, 7 * PAGE, &page_of(0x22))
}

fn fallback_after_read(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 8 * PAGE)?;
    super::coherence::stores_after_the_cut(scene, &file)
}

fn o_direct_mmapped(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 8 * PAGE)?;
    let shared = view(&file.open(libc::O_DIRECT)?, Sharing::Shared)?;
    store(&shared, 4 * PAGE, &page_of(0x22))?;
    let session = scene.session()?;
    let mapping = scene.map_direct(&session, &file, MapFlags::empty())?;
    scene.reads_directly(&mapping, 4 * PAGE, &page_of(0x22))?;
    // Brings the page back, silently changeable.
    loads(&shared, 4 * PAGE, &page_of(0x22))?;
    store(&shared, 4 * PAGE, &page_of(0x33))?;
    scene.reads_by_fallback(&mapping, 4 * PAGE, &page_of(0x33))
}

fn fcntl_clears(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 8 * PAGE)?;
    let handle = file.open(libc::O_DIRECT)?;
    let session = scene.session()?;
    let mapping = scene.map_direct(&session, &file, MapFlags::empty())?;
    fcntl(&handle, FcntlArg::F_SETFL(OFlag::empty()))?;
    cpu_reads(&handle, 4 * PAGE, file.page(4))?;
    ensure!(cached_pages(&handle)? > 0, "the read was to be cached: fcntl had no effect");
    store(&view(&handle, Sharing::Shared)?, 4 * PAGE, &page_of(0x22))?;
    scene.reads_by_fallback(&mapping, 4 * PAGE, &page_of(0x22))?;
    handle.write_all_at(&page_of(0x33), 5 * PAGE)?;
    scene.reads_by_fallback(&mapping, 5 * PAGE, &page_of(0x33))
}

fn direct_stays(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 8 * PAGE)?;
    let handle = file.open(libc::O_DIRECT | libc::O_NONBLOCK)?;
    fcntl(&handle, FcntlArg::F_SETFL(OFlag::empty()))?;
    let session = scene.session()?;
    let mapping = scene.map_direct(&session, &file, MapFlags::WRITE)?;
    cpu_reads(&handle, PAGE, file.page(1))?;
    handle.write_all_at(&page_of(0x22), PAGE)?;
    ensure!(cached_pages(&handle)? == 0, "pages are cached");
    scene.reads_directly(&mapping, PAGE, &page_of(0x22))
}

fn refuses_shared(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", PAGE)?;
    let direct = file.open(libc::O_DIRECT | libc::O_NONBLOCK)?;
    let refused = FileView::map(&direct, PAGE as usize, Sharing::Shared, true);
    let code = refused.err().and_then(|error| error.raw_os_error());
    ensure!(code == Some(libc::ENODEV), "a shared view answers {code:?}");
    let session = scene.session()?;
    scene.map_direct(&session, &file, MapFlags::WRITE).map(drop)
}

fn private_mmap(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 8 * PAGE)?;
    let direct = file.open(libc::O_DIRECT | libc::O_NONBLOCK)?;
    let session = scene.session()?;
    let reading = scene.map_direct(&session, &file, MapFlags::empty())?;
    loads(&view(&direct, Sharing::Private)?, PAGE, file.page(1))?;
    scene.reads_directly(&reading, PAGE, file.page(1))?;
    drop(reading);
    let writing = scene.map_direct(&session, &file, MapFlags::WRITE)?;
    scene.writes_directly(&writing, PAGE, &page_of(0x22))?;
    loads(&view(&direct, Sharing::Private)?, PAGE, &page_of(0x22))?;
    scene.reads_by_fallback(&writing, PAGE, &page_of(0x22))
}
