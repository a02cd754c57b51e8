//! Reasons of the filesystem.

use std::fs;

use anyhow::{Context, Result, ensure};
use nix::fcntl::{FallocateFlags, fallocate};
use peerfs_abi::{MapFlags, Reason, Trigger};

use crate::backend::Capability;
use crate::case::{Case, Setup};
use crate::evidence::Way::{Direct, Fallback};
use crate::scene::{CHUNK, PAGE, Scene};
use crate::witness::Witness;

pub const CASES: &[Case] = &[
    Case::new("reason-not-regular-file", "only regular files have blocks to map", Setup::USUAL, not_regular_file)
        .refusing(Reason::NotRegularFile),
    Case::new("reason-hole", "a stretch without blocks falls back with Hole, its neighbours are direct", Setup::USUAL, hole)
        .refusing(Reason::Hole),
    Case::new(
        "reason-unwritten",
        "preallocated blocks that were never written fall back with Unwritten",
        Setup::USUAL,
        unwritten,
    )
    .refusing(Reason::Unwritten),
    Case::new("reason-beyond-eof", "what lies beyond the end of the file falls back with BeyondEof", Setup::USUAL, beyond_eof)
        .refusing(Reason::BeyondEof),
    Case::new(
        "reason-misaligned",
        "a part of a block falls back with Misaligned, except at the end of the file",
        Setup::USUAL,
        misaligned,
    )
    .refusing(Reason::Misaligned),
    Case::new(
        "reason-page-cached",
        "under respect-cache, cached pages fall back with PageCached and stay cached",
        Setup::with("direct=respect-cache"),
        page_cached,
    )
    .refusing(Reason::PageCached),
    Case::new("reason-policy", "a file whose policy is never falls back with Policy", Setup::USUAL, policy)
        .refusing(Reason::Policy),
    Case::new(
        "reason-read-only-handle",
        "WRITE needs a handle that may write, else ReadOnly; reading stays direct",
        Setup::USUAL,
        read_only_handle,
    )
    .refusing(Reason::ReadOnly),
    Case::new(
        "reason-read-only-mount",
        "on a read-only mount WRITE falls back with ReadOnly; reading stays direct",
        Setup::USUAL.alone(),
        read_only_mount,
    )
    .refusing(Reason::ReadOnly)
    .needing(&[Capability::Persistent]),
    Case::new(
        "reason-busy-closed",
        "a range that is being revoked answers Busy to new maps, with a time to try again",
        Setup::PATIENT,
        busy_closed,
    )
    .refusing(Reason::Busy),
    Case::new(
        "reason-busy-thrashing",
        "a range that is revoked again and again answers Busy, with a back-off that query shows too",
        Setup::USUAL,
        busy_thrashing,
    )
    .refusing(Reason::Busy),
];

fn not_regular_file(scene: &mut Scene<'_>) -> Result<()> {
    let expected = [(0..PAGE, Fallback(Reason::NotRegularFile))];
    nix::unistd::mkfifo(&scene.path("fifo"), nix::sys::stat::Mode::S_IRWXU)?;
    let directory = peerfs_client::File::open(&scene.directory)?;
    scene.expect_table(&directory.query(0..PAGE, MapFlags::empty(), "cpu")?, &expected)?;
    scene.expect_table(&directory.query(0..PAGE, MapFlags::WRITE, "static")?, &expected)
}

fn hole(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.empty("file")?;
    file.handle.write_at(0, &[1; 4096])?;
    file.handle.write_at(3 * PAGE, &[2; 4096])?;
    let expected = [(0..PAGE, Direct), (PAGE..3 * PAGE, Fallback(Reason::Hole)), (3 * PAGE..4 * PAGE, Direct)];
    scene.expect_table(&file.handle.query(.., MapFlags::empty(), "cpu")?, &expected)?;
    let session = scene.session()?;
    let mapping = session.map(&file.handle, .., MapFlags::empty())?;
    scene.expect_map(&mapping, &expected)?;
    scene.reads_by_fallback(&mapping, PAGE, &[0; 2 * 4096])
}

fn unwritten(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 2 * PAGE)?;
    fallocate(file.writer()?, FallocateFlags::empty(), 2 * PAGE as i64, 2 * PAGE as i64)?;
    let expected = [(0..2 * PAGE, Direct), (2 * PAGE..4 * PAGE, Fallback(Reason::Unwritten))];
    scene.expect_table(&file.handle.query(.., MapFlags::empty(), "cpu")?, &expected)?;
    let session = scene.session()?;
    let mapping = session.map(&file.handle, .., MapFlags::empty())?;
    scene.expect_map(&mapping, &expected)?;
    scene.reads_by_fallback(&mapping, 2 * PAGE, &[0; 2 * 4096])
}

fn beyond_eof(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", PAGE + 100)?;
    let eof = PAGE + 100;
    let expected = [(0..eof, Direct), (eof..4 * PAGE, Fallback(Reason::BeyondEof))];
    scene.expect_table(&file.handle.query(0..4 * PAGE, MapFlags::empty(), "cpu")?, &expected)?;
    let session = scene.session()?;
    scene.expect_map(&session.map(&file.handle, 0..4 * PAGE, MapFlags::empty())?, &expected)
}

fn misaligned(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 3 * PAGE + 100)?;
    let session = scene.session()?;
    let head = [(100..PAGE, Fallback(Reason::Misaligned)), (PAGE..3 * PAGE + 100, Direct)];
    scene.expect_table(&file.handle.query(100.., MapFlags::empty(), "cpu")?, &head)?;
    let mapping = session.map(&file.handle, 100.., MapFlags::empty())?;
    scene.expect_map(&mapping, &head)?;
    scene.reads_by_fallback(&mapping, 100, &file.content[100..4096])?;
    let tail = [(0..2 * PAGE, Direct), (2 * PAGE..2 * PAGE + 7, Fallback(Reason::Misaligned))];
    scene.expect_map(&session.map(&file.handle, 0..2 * PAGE + 7, MapFlags::empty())?, &tail)
}

fn page_cached(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 8 * PAGE)?;
    let reader = file.reader()?;
    let random = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_RANDOM;
    nix::fcntl::posix_fadvise(&reader, 0, 0, random)?;
    crate::scene::cpu_reads(&reader, 2 * PAGE, file.page(2))?;
    let cached = crate::scene::cached_pages(&reader)?;
    ensure!(cached == 1, "{cached} pages are cached instead of the one that was read");
    let session = scene.session()?;
    let mapping = session.map(&file.handle, .., MapFlags::empty())?;
    let found: Vec<_> = mapping.segments().iter().filter(|segment| segment.reason == Some(Reason::PageCached)).collect();
    ensure!(found.iter().any(|segment| segment.file_offset <= 2 * PAGE && 3 * PAGE <= segment.end()), "{:?}", mapping.segments());
    scene.reads_by_fallback(&mapping, 2 * PAGE, file.page(2))?;
    ensure!(crate::scene::cached_pages(&reader)? >= cached, "the map was to leave the cache alone");
    drop(mapping);
    let dropped = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED;
    nix::fcntl::posix_fadvise(&reader, 0, 0, dropped)?;
    ensure!(crate::scene::cached_pages(&reader)? == 0, "the kernel keeps the pages");
    scene.map_direct(&session, &file, MapFlags::empty()).map(drop)?;
    scene.evidence.reason(Reason::PageCached);
    Ok(())
}

fn policy(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 2 * PAGE)?;
    peerfs_sys::set_xattr(&file.path, "user.peerfs.direct", b"never")?;
    let expected = [(0..2 * PAGE, Fallback(Reason::Policy))];
    scene.expect_table(&file.handle.query(.., MapFlags::empty(), "cpu")?, &expected)?;
    let session = scene.session()?;
    let mapping = session.map(&file.handle, .., MapFlags::empty())?;
    scene.expect_map(&mapping, &expected)?;
    scene.reads_by_fallback(&mapping, 0, &file.content)
}

fn read_only_handle(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 2 * PAGE)?;
    let handle = peerfs_client::File::open(&file.path)?;
    let expected = [(0..2 * PAGE, Fallback(Reason::ReadOnly))];
    scene.expect_table(&handle.query(.., MapFlags::WRITE, "cpu")?, &expected)?;
    let session = scene.session()?;
    scene.expect_map(&session.map(&handle, .., MapFlags::WRITE)?, &expected)?;
    scene.expect_map(&session.map(&handle, .., MapFlags::empty())?, &[(0..2 * PAGE, Direct)])
}

fn read_only_mount(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 2 * PAGE)?;
    let path = file.path.clone();
    drop(file);
    scene.mount.umount()?;
    scene.backend.mount_again(scene.mount, "ro")?;
    let handle = peerfs_client::File::open(&path)?;
    let session = scene.session()?;
    scene.expect_map(&session.map(&handle, .., MapFlags::WRITE)?, &[(0..2 * PAGE, Fallback(Reason::ReadOnly))])?;
    scene.expect_map(&session.map(&handle, .., MapFlags::empty())?, &[(0..2 * PAGE, Direct)])
}

fn busy_closed(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", CHUNK)?;
    let witness = Witness::map(scene, &file, 0..CHUNK, MapFlags::empty())?;
    std::thread::scope(|scope| {
        let revoker = scope.spawn(|| file.handle.revoke(..));
        let event = witness.expect_event(scene, Trigger::Administrator)?;
        let session = scene.session()?;
        let mapping = session.map(&file.handle, .., MapFlags::empty())?;
        scene.expect_map(&mapping, &[(0..CHUNK, Fallback(Reason::Busy))])?;
        ensure!(mapping.retry_after().is_some(), "Busy without a time to try again");
        scene.reads_by_fallback(&mapping, 0, &file.content)?;
        witness.acknowledge(&event)?;
        revoker.join().ok().context("no panic")??;
        scene.map_direct(&session, &file, MapFlags::empty()).map(drop)
    })
}

fn busy_thrashing(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 4 * PAGE)?;
    scene.needs_window(&file)?;
    let session = scene.session()?;
    let busy = [(0..4 * PAGE, Fallback(Reason::Busy))];
    for round in 0..200 {
        let mapping = session.map(&file.handle, .., MapFlags::WRITE)?;
        if mapping.segments()[0].reason == Some(Reason::Busy) {
            ensure!(round > 1, "the first maps were to be direct");
            scene.expect_map(&mapping, &busy)?;
            let left = mapping.retry_after().context("no back-off")?;
            let table = file.handle.query(.., MapFlags::WRITE, "cpu")?;
            scene.expect_table(&table, &busy)?;
            ensure!(
                table.retry_after.is_some_and(|shown| shown <= left),
                "query shows {:?}, the map {left:?}",
                table.retry_after
            );
            scene.reads_by_fallback(&mapping, 0, &file.content)?;
            drop(mapping);
            return scene.map_direct(&session, &file, MapFlags::WRITE).map(drop);
        }
        scene.expect_map(&mapping, &[(0..4 * PAGE, Direct)])?;
        // A cached read beside a WRITE mapping revokes it.
        fs::read(&file.path)?;
    }
    anyhow::bail!("the range is mapped and revoked without end")
}
