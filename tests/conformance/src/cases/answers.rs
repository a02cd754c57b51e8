//! What an answer looks like: flags, fallbacks, coalescing, partial answers, and that asking changes nothing.

use anyhow::{Result, ensure};
use peerfs_abi::{MapFlags, Reason};
use peerfs_client::Segment;

use crate::case::{Case, Setup};
use crate::evidence::Way::{Direct, Fallback};
use crate::kit::raw::{RawSession, open_direct, segments};
use crate::scene::{CHUNK, PAGE, Scene, cached_pages, cpu_reads};

pub const CASES: &[Case] = &[
    Case::new(
        "answer-direct-at-once",
        "an uncontended sequential file is direct altogether, at the first call",
        Setup::USUAL,
        direct_at_once,
    ),
    Case::new("answer-coalesced", "adjacent blocks are one segment: no two neighbours could be one", Setup::USUAL, coalesced),
    Case::new(
        "answer-partial",
        "an answer may be a mix: direct, Hole, Unwritten and BeyondEof, each stretch exact",
        Setup::USUAL,
        partial,
    ),
    Case::new(
        "answer-continues",
        "an answer that does not fit in one call continues without gap or overlap",
        Setup::USUAL,
        continues,
    ),
    Case::new(
        "answer-fallback-same-bytes",
        "fallback serves and stores the same bytes by the same call",
        Setup::USUAL,
        fallback_same_bytes,
    ),
    Case::new("answer-attested", "bytes are counted by path, for the mapping and for the file", Setup::USUAL, attested),
    Case::new(
        "flag-query",
        "QUERY decides as a map would and changes nothing: no mapping, no window, no page leaves the cache",
        Setup::USUAL,
        query_changes_nothing,
    ),
    Case::new("flag-write", "without WRITE the importer gets memory it cannot write", Setup::USUAL, without_write),
];

fn direct_at_once(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 2 * CHUNK + 123)?;
    let session = scene.session()?;
    let mapping = session.map(&file.handle, .., MapFlags::empty())?;
    scene.expect_map(&mapping, &[(0..file.length(), Direct)])?;
    scene.reads_directly(&mapping, 0, &file.content)
}

fn coalesced(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", CHUNK)?;
    let table = file.handle.query(.., MapFlags::empty(), "cpu")?;
    ensure!(table.segments.len() == 1, "one chunk written at once is {:?}", table.segments);
    let session = scene.session()?;
    let mapping = session.map(&file.handle, .., MapFlags::empty())?;
    ensure!(mapping.segments().len() == 1, "{:?}", mapping.segments());
    scene.expect_map(&mapping, &[(0..CHUNK, Direct)])?;

    let large = scene.file("large", 3 * CHUNK + PAGE)?;
    let table = large.handle.query(.., MapFlags::empty(), "cpu")?;
    scene.expect_table(&table, &[(0..large.length(), Direct)])?;
    for pair in table.segments.windows(2) {
        ensure!(!could_be_one(&pair[0], &pair[1]), "{pair:?} could be one");
    }
    let mapping = session.map(&large.handle, .., MapFlags::empty())?;
    for pair in mapping.segments().windows(2) {
        ensure!(pair[1].file_offset.is_multiple_of(CHUNK), "cut inside a chunk: {pair:?}");
    }
    Ok(())
}

fn could_be_one(one: &Segment, next: &Segment) -> bool {
    let after = one.device_offset.map(|offset| offset + one.length);
    one.path == next.path && one.reason == next.reason && (one.reason.is_some() || after == next.device_offset)
}

fn partial(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.empty("file")?;
    let written = vec![9; 2 * PAGE as usize];
    file.handle.write_at(0, &written)?;
    file.handle.write_at(4 * PAGE, &written)?;
    nix::fcntl::fallocate(file.writer()?, nix::fcntl::FallocateFlags::empty(), 6 * PAGE as i64, PAGE as i64)?;
    let expected = [
        (0..2 * PAGE, Direct),
        (2 * PAGE..4 * PAGE, Fallback(Reason::Hole)),
        (4 * PAGE..6 * PAGE, Direct),
        (6 * PAGE..7 * PAGE, Fallback(Reason::Unwritten)),
        (7 * PAGE..9 * PAGE, Fallback(Reason::BeyondEof)),
    ];
    scene.expect_table(&file.handle.query(0..9 * PAGE, MapFlags::empty(), "cpu")?, &expected)?;
    let session = scene.session()?;
    let mapping = session.map(&file.handle, 0..9 * PAGE, MapFlags::empty())?;
    scene.expect_map(&mapping, &expected)?;
    let mut all = vec![0; 7 * PAGE as usize];
    let moved = mapping.read_at(0, &mut all)?;
    scene.expect_moved(moved, 4 * PAGE, 3 * PAGE)?;
    ensure!(all[..2 * PAGE as usize] == written[..] && all[2 * PAGE as usize..4 * PAGE as usize].iter().all(|byte| *byte == 0));
    Ok(())
}

fn continues(scene: &mut Scene<'_>) -> Result<()> {
    const PIECES: u64 = 300;
    let file = scene.empty("file")?;
    for piece in 0..PIECES {
        file.handle.write_at(2 * piece * PAGE, &[piece as u8; 4096])?;
    }
    let mut expected = Vec::new();
    for piece in 0..PIECES {
        expected.push((2 * piece * PAGE..(2 * piece + 1) * PAGE, Direct));
        expected.push(((2 * piece + 1) * PAGE..(2 * piece + 2) * PAGE, Fallback(Reason::Hole)));
    }
    expected.pop();
    let session = RawSession::open(&scene.directory)?;
    let answer = session.map(&open_direct(&file.path, false)?, 0, 0, MapFlags::empty())?;
    ensure!(answer.next_offset < answer.end_offset, "everything fits in one call: the case needs more pieces");
    ensure!(
        segments(&answer).last().is_some_and(|last| last.file_offset + last.length == answer.next_offset),
        "it continues elsewhere"
    );
    scene.expect_table(&file.handle.query(.., MapFlags::empty(), "cpu")?, &expected)?;
    let session = scene.session()?;
    scene.expect_map(&session.map(&file.handle, .., MapFlags::empty())?, &expected)
}

fn fallback_same_bytes(scene: &mut Scene<'_>) -> Result<()> {
    let mut file = scene.file("file", 4 * PAGE + 10)?;
    peerfs_sys::set_xattr(&file.path, "user.peerfs.direct", b"never")?;
    let session = scene.session()?;
    let mapping = session.map(&file.handle, .., MapFlags::WRITE)?;
    scene.expect_map(&mapping, &[(0..file.length(), Fallback(Reason::Policy))])?;
    scene.reads_by_fallback(&mapping, 0, &file.content)?;
    scene.writes(&mapping, 5000, &[0x5A; 3000], peerfs_abi::Path::Fallback)?;
    file.content[5000..8000].fill(0x5A);
    scene.reads_by_fallback(&mapping, 0, &file.content)?;
    file.expect_content()
}

fn attested(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 2 * PAGE)?;
    scene.needs_window(&file)?;
    file.writer()?.set_len(4 * PAGE)?;
    let session = scene.session()?;
    let mapping = session.map(&file.handle, .., MapFlags::empty())?;
    scene.expect_map(&mapping, &[(0..2 * PAGE, Direct), (2 * PAGE..4 * PAGE, Fallback(Reason::Hole))])?;
    let before = file.handle.info()?;
    let moved = mapping.read_at(PAGE, &mut vec![0; 2 * PAGE as usize])?;
    ensure!((moved.direct(), moved.fallback) == (PAGE, PAGE), "{moved:?}");
    mapping.report()?;
    let after = file.handle.info()?;
    ensure!(after.file_bytes_direct - before.file_bytes_direct == PAGE, "the file counts other direct bytes");
    ensure!(after.file_bytes_fallback - before.file_bytes_fallback == PAGE, "the file counts other fallback bytes");
    let ledger: serde_json::Value = serde_json::from_slice(&std::fs::read(scene.path(".peerfs/mappings.json"))?)?;
    let record = ledger["mappings"].as_array().and_then(|all| all.iter().find(|one| one["mapping"] == mapping.id()));
    ensure!(record.is_some_and(|record| record["bytes_direct"] == PAGE && record["bytes_fallback"] == PAGE), "{ledger}");
    let by_reason = |record: &serde_json::Value| record["moved"]["fallback"]["Hole"] == PAGE;
    ensure!(record.is_some_and(by_reason), "the ledger does not tell why: {ledger}");
    let place = Reason::Hole.slot();
    ensure!(after.file_fallback[place] - before.file_fallback[place] == PAGE, "the file does not tell why");
    // What is revoked falls back from then on, for a reason of its own.
    file.handle.revoke(..)?;
    mapping.read_at(0, &mut vec![0; PAGE as usize])?;
    let reasons = mapping.fallback_reasons();
    ensure!(reasons == [(None, PAGE), (Some(Reason::Hole), PAGE)], "{reasons:?}");
    mapping.report()?;
    ensure!(file.handle.info()?.file_fallback[0] - before.file_fallback[0] == PAGE, "the file does not tell of revocation");
    Ok(())
}

fn query_changes_nothing(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 4 * PAGE)?;
    // Opening a direct handle drops the pages, so it comes first.
    let direct = open_direct(&file.path, true)?;
    let reader = file.reader()?;
    cpu_reads(&reader, 0, &file.content)?;
    let cached = cached_pages(&reader)?;
    ensure!(cached > 0, "the read was to be cached");
    let session = scene.session()?;
    let expected = [(0..4 * PAGE, Direct)];
    scene.expect_table(&session.query(&file.handle, .., MapFlags::WRITE)?, &expected)?;
    scene.expect_table(&file.handle.query(.., MapFlags::empty(), "cpu")?, &expected)?;
    let raw = RawSession::open(&scene.directory)?;
    let answer = raw.map(&direct, 0, 0, MapFlags::QUERY | MapFlags::WRITE)?;
    scene.expect_answer(&answer, &expected)?;
    ensure!(answer.mapping_id == 0 && segments(&answer).iter().all(|segment| segment.grant_id == 0), "something was granted");
    let info = scene.mount.info()?;
    ensure!(info["mappings"] == 0 && info["windows"] == 0, "something is mapped: {info}");
    ensure!(cached_pages(&reader)? == cached, "pages left the cache");
    scene.map_direct(&session, &file, MapFlags::WRITE).map(drop)
}

fn without_write(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", PAGE)?;
    let session = scene.session()?;
    let mapping = scene.map_direct(&session, &file, MapFlags::empty())?;
    ensure!(mapping.access(0..PAGE)?.as_mut_ptr().is_none(), "the library hands out an address for writing");
    ensure!(mapping.write_at(0, &[1]).is_err(), "the library writes");
    let witness = crate::witness::Witness::map(scene, &file, 0..PAGE, MapFlags::empty())?;
    ensure!(witness.held[0].window.demand_write_access().is_err(), "mprotect makes it writable");
    file.expect_content()
}
