//! Blocks that two files share, and words that several importers share.

use anyhow::{Result, ensure};
use peerfs_abi::{MapFlags, Reason, Trigger};

use super::revocation::{LAST_STORE, in_order};
use crate::case::{Case, Setup};
use crate::evidence::Way::{Direct, Fallback};
use crate::scene::{CHUNK, PAGE, Scene, page_of, same_bytes};
use crate::witness::Witness;

pub const CASES: &[Case] = &[
    Case::new(
        "reason-shared-extent",
        "WRITE to blocks that a clone shares falls back with SharedExtent; reading stays direct, and so does what was rewritten",
        Setup::USUAL,
        shared_extent,
    )
    .refusing(Reason::SharedExtent),
    Case::new(
        "shared-extent-mapped-once",
        "shared blocks are in the window of one file at a time; the other is told, by a query too, and is direct afterwards",
        Setup::USUAL,
        mapped_once,
    )
    .refusing(Reason::SharedExtent),
    Case::new(
        "trigger-reflink",
        "cloning a range revokes mappings that may write it and leaves those that read",
        Setup::PATIENT,
        reflink,
    )
    .revoking(Trigger::Reflink),
    Case::new(
        "flag-atomic",
        "ATOMIC is granted where the whole path can, and several importers then add up exactly",
        Setup::USUAL,
        atomic,
    ),
];

fn shared_extent(scene: &mut Scene<'_>) -> Result<()> {
    let (source, clone) = (scene.file("source", 4 * PAGE)?, scene.empty("clone")?);
    let shared = clone.handle.reflink_from(&source.handle, 0, 0, 0)?;
    ensure!(shared == 4 * PAGE, "{shared} bytes are shared");
    let session = scene.session()?;
    for file in [&source, &clone] {
        let refused = [(0..4 * PAGE, Fallback(Reason::SharedExtent))];
        scene.expect_table(&session.query(&file.handle, .., MapFlags::WRITE)?, &refused)?;
        scene.expect_map(&session.map(&file.handle, .., MapFlags::WRITE)?, &refused)?;
        let mapping = session.map(&file.handle, .., MapFlags::empty())?;
        scene.expect_map(&mapping, &[(0..4 * PAGE, Direct)])?;
        scene.reads_directly(&mapping, 0, &source.content)?;
    }
    // A write gives the clone blocks of its own, and leaves the source alone.
    clone.handle.write_at(PAGE, &page_of(0x22))?;
    let expected = [
        (0..PAGE, Fallback(Reason::SharedExtent)),
        (PAGE..2 * PAGE, Direct),
        (2 * PAGE..4 * PAGE, Fallback(Reason::SharedExtent)),
    ];
    let mapping = session.map(&clone.handle, .., MapFlags::WRITE)?;
    scene.expect_map(&mapping, &expected)?;
    scene.writes_directly(&mapping, PAGE, &page_of(0x33))?;
    source.expect_content()
}

fn mapped_once(scene: &mut Scene<'_>) -> Result<()> {
    let (source, clone) = (scene.file("source", 4 * PAGE)?, scene.empty("clone")?);
    scene.needs_window(&source)?;
    clone.handle.reflink_from(&source.handle, 0, 0, 0)?;
    let session = scene.session()?;
    let first = session.map(&source.handle, .., MapFlags::empty())?;
    scene.expect_map(&first, &[(0..4 * PAGE, Direct)])?;
    let refused = [(0..4 * PAGE, Fallback(Reason::SharedExtent))];
    scene.expect_table(&session.query(&clone.handle, .., MapFlags::empty())?, &refused)?;
    let second = session.map(&clone.handle, .., MapFlags::empty())?;
    scene.expect_map(&second, &refused)?;
    scene.reads_by_fallback(&second, 0, &source.content)?;
    drop(first);
    let second = session.map(&clone.handle, .., MapFlags::empty())?;
    scene.expect_map(&second, &[(0..4 * PAGE, Direct)])?;
    scene.reads_directly(&second, 0, &source.content)
}

fn reflink(scene: &mut Scene<'_>) -> Result<()> {
    let (source, clone) = (scene.file("source", CHUNK)?, scene.empty("clone")?);
    let reads = scene.file("reads", CHUNK)?;
    let reader = Witness::map(scene, &reads, 0..CHUNK, MapFlags::empty())?;
    scene.empty("other")?.handle.reflink_from(&reads.handle, 0, 0, 0)?;
    reader.expect_undisturbed(scene)?;
    let writer = Witness::map(scene, &source, 0..CHUNK, MapFlags::WRITE)?;
    in_order(scene, &writer, Trigger::Reflink, || Ok(clone.handle.reflink_from(&source.handle, 0, 0, 0).map(drop)?))?;
    let mut expected = source.content.clone();
    expected[..LAST_STORE.len()].copy_from_slice(LAST_STORE);
    same_bytes(&std::fs::read(&clone.path)?, &expected)
}

fn atomic(scene: &mut Scene<'_>) -> Result<()> {
    const IMPORTERS: u64 = 4;
    const ADDS: u64 = 1000;
    let file = scene.file("file", PAGE)?;
    file.handle.write_at(0, &0_u64.to_le_bytes())?;
    let sessions = (0..IMPORTERS).map(|_| scene.session()).collect::<Result<Vec<_>>>()?;
    let mut mappings = Vec::new();
    for session in &sessions {
        mappings.push(scene.map_direct(session, &file, MapFlags::WRITE | MapFlags::ATOMIC)?);
    }
    std::thread::scope(|scope| {
        let adding = |mapping: &peerfs_client::Mapping| (0..ADDS).try_for_each(|_| mapping.fetch_add(0, 1_u64).map(drop));
        let threads: Vec<_> = mappings.iter().map(|mapping| scope.spawn(move || adding(mapping))).collect();
        threads
            .into_iter()
            .try_for_each(|thread| -> Result<()> { Ok(thread.join().map_err(|_| anyhow::anyhow!("an importer panicked"))??) })
    })?;
    drop(mappings);
    let mut sum = [0; 8];
    file.handle.read_at(0, &mut sum)?;
    ensure!(u64::from_le_bytes(sum) == IMPORTERS * ADDS, "the sum is {}", u64::from_le_bytes(sum));
    Ok(())
}
