//! The importer in the server: it needs no window in a process, so it shows the rules where none is given one.

use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Result, anyhow, ensure};
use nix::fcntl::{FallocateFlags, fallocate};
use peerfs_abi::names::SERVER_IMPORTER;
use peerfs_abi::{MapFlags, Path, Reason, Trigger};
use peerfs_client::Error;
use peerfs_sys::Sharing;

use super::faults::{command, device_offset};
use super::triggers::recorded;
use crate::backend::Capability;
use crate::case::{Case, Setup};
use crate::evidence::Way::{Direct, Fallback};
use crate::scene::{CHUNK, PAGE, Scene, cached_pages, cpu_reads, page_of, store, view};
use crate::witness::PATIENCE;

const FAILING: Setup = Setup::with("faults,deadline_ms=30000").alone();
/// Of a file that is read while it is changed: long enough for a change to come in between.
const BYTES: u64 = 4 * CHUNK;

pub const CASES: &[Case] = &[
    Case::new(
        "server-reads-directly",
        "the importer in the server reads an uncontended file directly altogether, its unaligned end included, as query says",
        Setup::USUAL,
        reads_directly,
    ),
    Case::new(
        "server-beside-clients",
        "where no process can be given the memory a client falls back with NoGrantObject, and the importer in the server does not",
        Setup::USUAL.topology(crate::topology::Topology::NotGrantable),
        beside_clients,
    )
    .refusing(Reason::NoGrantObject),
    Case::new(
        "server-reasons",
        "a mix of blocks, Hole, Unwritten and Misaligned goes the way of each stretch, as query says, and reads the same bytes",
        Setup::USUAL,
        reasons,
    )
    .refusing(Reason::Unwritten),
    Case::new("server-policy", "a file whose policy is never falls back with Policy for it too", Setup::USUAL, policy)
        .refusing(Reason::Policy),
    Case::new(
        "server-page-cached",
        "under respect-cache, cached pages fall back with PageCached for it too and stay cached",
        Setup::with("direct=respect-cache"),
        page_cached,
    )
    .refusing(Reason::PageCached),
    Case::new(
        "server-device-resetting",
        "while the device is being reset it falls back with DeviceResetting and reads the same bytes",
        FAILING,
        device_resetting,
    )
    .refusing(Reason::DeviceResetting)
    .needing(&[Capability::Faults]),
    Case::new(
        "server-media-error",
        "blocks that cannot be read are an error, their neighbours are read directly",
        FAILING,
        media_error,
    )
    .refusing(Reason::MediaError)
    .needing(&[Capability::Faults]),
    Case::new(
        "server-sees-writes",
        "it reads directly what any handle wrote and what a program stored to a mmap, and leaves no page in the cache",
        Setup::USUAL,
        sees_writes,
    ),
    Case::new(
        "server-after-changes",
        "after truncate, growth, a punched hole and a clone it reads what the file holds then, and no old byte",
        Setup::USUAL,
        after_changes,
    )
    .refusing(Reason::Hole),
    Case::new("server-attested", "what it read is counted by path and reason, for the mount", Setup::USUAL.alone(), attested),
    Case::new(
        "server-truncate",
        "a truncate revokes what it holds while it reads, and waits for nobody",
        Setup::PATIENT,
        truncate,
    )
    .revoking(Trigger::Truncate),
    Case::new("server-punch", "so does a punched hole", Setup::PATIENT, punch).revoking(Trigger::Punch),
    Case::new("server-buffered-write", "so does a buffered write beside it", Setup::PATIENT, buffered_write)
        .revoking(Trigger::CpuAccess),
    Case::new("server-administrator", "so does an administrator", Setup::PATIENT, administrator)
        .revoking(Trigger::Administrator),
];

fn reads_directly(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", CHUNK + 5 * PAGE + 123)?;
    let table = file.handle.query(.., MapFlags::empty(), SERVER_IMPORTER)?;
    scene.expect_table_of(SERVER_IMPORTER, &table, &[(0..file.length(), Direct)])?;
    scene.server_reads(&file.handle, 0, &file.content, Direct)?;
    let at = (CHUNK - PAGE) as usize;
    scene.server_reads(&file.handle, CHUNK - PAGE, &file.content[at..at + 2 * PAGE as usize], Direct)
}

fn beside_clients(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 4 * PAGE)?;
    let session = scene.session()?;
    let mapping = session.map(&file.handle, .., MapFlags::empty())?;
    scene.expect_map(&mapping, &[(0..4 * PAGE, Fallback(Reason::NoGrantObject))])?;
    scene.reads_by_fallback(&mapping, 0, &file.content)?;
    scene.server_reads(&file.handle, 0, &file.content, Direct)
}

fn reasons(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 2 * PAGE)?;
    fallocate(file.writer()?, FallocateFlags::empty(), 2 * PAGE as i64, 2 * PAGE as i64)?;
    file.writer()?.set_len(6 * PAGE)?;
    let stretches =
        [(0..2 * PAGE, Direct), (2 * PAGE..4 * PAGE, Fallback(Reason::Unwritten)), (4 * PAGE..6 * PAGE, Fallback(Reason::Hole))];
    scene.expect_table_of(SERVER_IMPORTER, &file.handle.query(.., MapFlags::empty(), SERVER_IMPORTER)?, &stretches)?;
    let zeros = vec![0; 2 * PAGE as usize];
    for ((range, way), bytes) in stretches.into_iter().zip([&file.content, &zeros, &zeros]) {
        scene.server_reads(&file.handle, range.start, bytes, way)?;
    }
    scene.server_reads(&file.handle, 100, &file.content[100..PAGE as usize], Fallback(Reason::Misaligned))?;
    let behind = file.handle.read_by_server(6 * PAGE, PAGE)?;
    ensure!(behind.bytes() == 0, "behind the end of the file it reads {behind:?}");
    Ok(())
}

fn policy(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 2 * PAGE)?;
    peerfs_sys::set_xattr(&file.path, "user.peerfs.direct", b"never")?;
    let refused = [(0..2 * PAGE, Fallback(Reason::Policy))];
    scene.expect_table_of(SERVER_IMPORTER, &file.handle.query(.., MapFlags::empty(), SERVER_IMPORTER)?, &refused)?;
    scene.server_reads(&file.handle, 0, &file.content, Fallback(Reason::Policy))?;
    peerfs_sys::set_xattr(&file.path, "user.peerfs.direct", b"prefer")?;
    scene.server_reads(&file.handle, 0, &file.content, Direct)
}

fn page_cached(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 4 * PAGE)?;
    let reader = file.reader()?;
    cpu_reads(&reader, 0, &file.content)?;
    let cached = cached_pages(&reader)?;
    ensure!(cached == 4, "{cached} pages are cached");
    scene.server_reads(&file.handle, 0, &file.content, Fallback(Reason::PageCached))?;
    ensure!(cached_pages(&reader)? == cached, "pages left the cache");
    nix::fcntl::posix_fadvise(&reader, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    scene.server_reads(&file.handle, 0, &file.content, Direct)
}

fn device_resetting(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 2 * PAGE)?;
    command(scene, "reset\n")?;
    scene.server_reads(&file.handle, 0, &file.content, Fallback(Reason::DeviceResetting))?;
    command(scene, "recover\n")?;
    scene.server_reads(&file.handle, 0, &file.content, Direct)
}

fn media_error(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 4 * PAGE)?;
    command(scene, &format!("media-error {} 4096\n", device_offset(&file)? + 2 * PAGE))?;
    let expected = [(0..2 * PAGE, Direct), (2 * PAGE..3 * PAGE, Fallback(Reason::MediaError)), (3 * PAGE..4 * PAGE, Direct)];
    scene.expect_table_of(SERVER_IMPORTER, &file.handle.query(.., MapFlags::empty(), SERVER_IMPORTER)?, &expected)?;
    scene.server_reads(&file.handle, 0, &file.content[..2 * PAGE as usize], Direct)?;
    scene.server_reads(&file.handle, 3 * PAGE, file.page(3), Direct)?;
    let bad = file.handle.read_by_server(2 * PAGE, PAGE);
    let is_eio = matches!(&bad, Err(Error::System { source, .. }) if source.raw_os_error() == Some(libc::EIO));
    ensure!(is_eio, "bytes that the device does not have: {bad:?}");
    command(scene, "recover\n")?;
    scene.server_reads(&file.handle, 0, &file.content, Direct)
}

fn sees_writes(scene: &mut Scene<'_>) -> Result<()> {
    let mut file = scene.file("file", 8 * PAGE)?;
    let put = |content: &mut Vec<u8>, page: u64, byte: u8| -> Result<Vec<u8>> {
        content[(page * PAGE) as usize..][..PAGE as usize].fill(byte);
        Ok(page_of(byte))
    };
    let writer = file.writer()?;
    writer.write_all_at(&put(&mut file.content, 1, 0x11)?, PAGE)?;
    scene.server_reads(&file.handle, 0, &file.content, Direct)?;
    ensure!(cached_pages(&writer)? == 0, "pages stay cached");
    file.handle.write_at(2 * PAGE, &put(&mut file.content, 2, 0x22)?)?;
    scene.server_reads(&file.handle, 0, &file.content, Direct)?;
    // A page that a write left in the cache, so that no store to it is heard of.
    writer.write_all_at(&page_of(0x32), 3 * PAGE)?;
    let shared = view(&writer, Sharing::Shared)?;
    store(&shared, 3 * PAGE, &put(&mut file.content, 3, 0x33)?)?;
    scene.server_reads(&file.handle, 0, &file.content, Direct)?;
    store(&shared, 4 * PAGE, &put(&mut file.content, 4, 0x44)?)?;
    scene.server_reads(&file.handle, 0, &file.content, Direct)?;
    let mapping = scene.session()?.map(&file.handle, .., MapFlags::WRITE)?;
    mapping.write_at(5 * PAGE, &put(&mut file.content, 5, 0x55)?)?;
    drop(mapping);
    scene.server_reads(&file.handle, 0, &file.content, Direct)?;
    file.expect_content()
}

fn after_changes(scene: &mut Scene<'_>) -> Result<()> {
    let mut file = scene.file("file", 8 * PAGE)?;
    scene.server_reads(&file.handle, 0, &file.content, Direct)?;
    let writer = file.writer()?;
    writer.set_len(4 * PAGE + 100)?;
    file.content.truncate(4 * PAGE as usize + 100);
    scene.server_reads(&file.handle, 0, &file.content, Direct)?;
    // The rest of the last block has bytes of before, which must not come back.
    writer.set_len(5 * PAGE)?;
    file.content.resize(5 * PAGE as usize, 0);
    scene.server_reads(&file.handle, 0, &file.content, Direct)?;
    let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&writer, hole, PAGE as i64, PAGE as i64)?;
    file.content[PAGE as usize..2 * PAGE as usize].fill(0);
    scene.server_reads(&file.handle, 0, file.page(0), Direct)?;
    scene.server_reads(&file.handle, PAGE, file.page(1), Fallback(Reason::Hole))?;
    scene.server_reads(&file.handle, 2 * PAGE, &file.content[2 * PAGE as usize..], Direct)?;
    let clone = scene.empty("clone")?;
    clone.handle.reflink_from(&file.handle, 2 * PAGE, 0, 2 * PAGE)?;
    let shared = &file.content[2 * PAGE as usize..4 * PAGE as usize];
    scene.server_reads(&clone.handle, 0, shared, Direct)?;
    clone.handle.write_at(0, &page_of(0x66))?;
    scene.server_reads(&clone.handle, 0, &page_of(0x66), Direct)?;
    scene.server_reads(&file.handle, 2 * PAGE, shared, Direct)
}

fn attested(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 2 * PAGE)?;
    file.writer()?.set_len(3 * PAGE)?;
    scene.server_reads(&file.handle, 0, &file.content, Direct)?;
    scene.server_reads(&file.handle, 2 * PAGE, &page_of(0), Fallback(Reason::Hole))?;
    let info = scene.mount.info()?;
    let (moved, path) = (&info["moved"], scene.direct_path());
    ensure!(moved[path.name()] == 2 * PAGE && moved["fallback"]["Hole"] == PAGE, "the mount moved {moved}");
    let other = if path == Path::DirectBar { Path::DirectWindow } else { Path::DirectBar };
    ensure!(moved[other.name()] == 0, "the mount moved {moved}");
    Ok(())
}

/// While the importer in the server reads a file over and over, `change` is done to it until a revocation by `trigger` is on
/// record: of nobody else's mapping, since there is none. Every block that is read whole holds one of these bytes.
fn revoked_while_it_reads(scene: &Scene<'_>, trigger: Trigger, change: impl Fn(u8) -> Result<()>) -> Result<()> {
    let file = peerfs_client::File::open(scene.path("file"))?;
    let legal = [0, 1, 2].map(|byte| crc32c::crc32c(&page_of(byte)));
    let before = recorded(scene, trigger)?;
    // Before anything is changed: whoever changes without a pause may leave no read the time to be direct.
    let whole = file.read_by_server(0, BYTES)?;
    ensure!(whole.direct_bar + whole.direct_window > 0, "nothing was read directly");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| -> Result<()> {
            while !stop.load(Ordering::Relaxed) {
                file.read_by_server(0, BYTES)?;
                let block = file.read_by_server(BYTES - PAGE, PAGE)?;
                ensure!(block.bytes() < PAGE || legal.contains(&block.crc32c), "a block holds bytes it never had: {block:?}");
            }
            Ok(())
        });
        let outcome = change_until(|| Ok(recorded(scene, trigger)? > before), change);
        stop.store(true, Ordering::Relaxed);
        reading.join().map_err(|_| anyhow!("the reader panicked"))??;
        outcome?;
        scene.evidence.path(scene.direct_path());
        scene.evidence.trigger(trigger);
        Ok(())
    })
}

fn change_until(so: impl Fn() -> Result<bool>, change: impl Fn(u8) -> Result<()>) -> Result<()> {
    let start = Instant::now();
    for round in 0_u32.. {
        // The deadline of importers is later than this: whatever ends in time did not wait for it.
        ensure!(start.elapsed() < PATIENCE, "no change meets a reading");
        change(1 + (round % 2) as u8)?;
        if so()? {
            break;
        }
    }
    Ok(())
}

fn filled(scene: &Scene<'_>) -> Result<std::fs::File> {
    let file = scene.empty("file")?;
    file.handle.write_at(0, &vec![1; BYTES as usize])?;
    file.open(libc::O_DIRECT | libc::O_NONBLOCK)
}

fn truncate(scene: &mut Scene<'_>) -> Result<()> {
    let file = filled(scene)?;
    revoked_while_it_reads(scene, Trigger::Truncate, |byte| {
        file.set_len(BYTES - PAGE)?;
        Ok(file.write_all_at(&page_of(byte), BYTES - PAGE)?)
    })
}

fn punch(scene: &mut Scene<'_>) -> Result<()> {
    let file = filled(scene)?;
    let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    revoked_while_it_reads(scene, Trigger::Punch, |byte| {
        fallocate(&file, hole, (BYTES - PAGE) as i64, PAGE as i64)?;
        Ok(file.write_all_at(&page_of(byte), BYTES - PAGE)?)
    })
}

fn buffered_write(scene: &mut Scene<'_>) -> Result<()> {
    drop(filled(scene)?);
    let writer = std::fs::OpenOptions::new().read(true).write(true).open(scene.path("file"))?;
    revoked_while_it_reads(scene, Trigger::CpuAccess, |byte| Ok(writer.write_all_at(&page_of(byte), BYTES - PAGE)?))
}

fn administrator(scene: &mut Scene<'_>) -> Result<()> {
    drop(filled(scene)?);
    let file = peerfs_client::File::open(scene.path("file"))?;
    revoked_while_it_reads(scene, Trigger::Administrator, |_| {
        let revoked = file.revoke(..)?;
        ensure!(revoked.enforced == 0, "the importer in the server did not acknowledge: {revoked:?}");
        Ok(())
    })
}
