//! Importers on device memory: the engine and the pool together.

use peerfs_abi::{MapFlags, Reason};

use super::super::*;
use super::world::*;
use crate::types::*;

#[test]
fn one_session_maps_what_another_allocated() {
    for world in [World::new(8 * MIB, config(0)), World::windowed(4 * MIB, 8 * MIB, config(0))] {
        let (owner, importer) = (world.peer(), world.peer());
        let id = world.allocate(owner, 3 * MIB);
        world.pool.write(id, 2 * MIB, b"by the cpu").expect("write");
        let answer = world.map(importer, id, Range::ALL, MapFlags::WRITE);
        assert_eq!(answer.end_offset, 3 * MIB);
        let windows = world.windows(&answer, true);
        assert_eq!(windows.len(), 2, "{answer:?}");
        assert_eq!(windows[1].1.load(0, 10).expect("live"), b"by the cpu");
        assert!(windows[1].1.store(4096, b"by a peer"));
        assert_eq!(world.pool.read(id, 2 * MIB + 4096, 9).expect("read"), b"by a peer", "one authority");
        world.pool.write(id, 0, &[5; 4096]).expect("whole blocks");
        assert_eq!(windows[0].1.load(4095, 2).expect("still mapped"), [5, 0]);
        assert!(world.pool.record().allocations[0].mapped);
        world.pool.free(owner.owner.session, id).expect("free");
        assert!(windows.iter().all(|window| !window.1.is_live()), "revoked first");
        world.assert_empty();
    }
}

#[test]
fn a_move_ends_mappings_and_keeps_the_last_store() {
    for world in [World::new(4 * MIB, config(4 * MIB)), World::windowed(4 * MIB, 4 * MIB, config(4 * MIB))] {
        let (owner, importer) = (world.peer(), world.peer());
        let id = world.allocate(owner, 3 * MIB);
        let windows = world.windows(&world.map(importer, id, Range::ALL, MapFlags::WRITE), true);
        assert!(windows[0].1.store(12345, b"last"));
        let other = world.allocate(owner, 4 * MIB);
        assert!(!windows[0].1.is_live());
        assert!(world.pool.view(id).expect("there").migrated);
        assert_eq!(world.pool.read(id, 12345, 4).expect("served from main memory"), b"last");
        let snapshot = world.engine.snapshot();
        assert!(snapshot.revocations.iter().any(|record| record.trigger == Trigger::Relocation.name() && record.revoked == 2));
        // Full: a map falls back honestly, and a question says so before.
        let answer = world.map(importer, id, Range::ALL, MapFlags::empty());
        assert_eq!(refusal(&answer), Some(Reason::ApertureFull));
        let asked = world.query(importer, id);
        assert_eq!(asked.decisions.len(), 1);
        assert_eq!(asked.decisions[0].placement, Placement::Fallback(Reason::ApertureFull));
        // Room again: the next map brings it back, where the question said.
        world.pool.free(owner.owner.session, other).expect("free");
        let asked = world.query(importer, id).decisions;
        assert!(world.pool.view(id).expect("there").migrated, "a question changes nothing");
        let windows = world.windows(&world.map(importer, id, Range::ALL, MapFlags::WRITE), true);
        assert_eq!(windows[0].1.load(12345, 4).expect("live"), b"last");
        assert_eq!(world.query(importer, id).decisions, asked);
        assert_eq!((world.pool.record().moved_out, world.pool.record().moved_in), (1, 1));
        world.assert_balanced();
        world.pool.close_session(owner.owner.session);
        world.assert_empty();
    }
}

#[test]
fn mapped_memory_moves_last() {
    let world = World::new(4 * MIB, config(2 * MIB));
    let peer = world.peer();
    let (mapped, idle) = (world.allocate(peer, 2 * MIB), world.allocate(peer, 2 * MIB));
    let windows = world.windows(&world.map(peer, mapped, Range::ALL, MapFlags::empty()), false);
    world.pool.read(idle, 0, 1).expect("used later than the mapped one");
    world.allocate(peer, 2 * MIB);
    assert!(windows[0].1.is_live());
    assert!(world.pool.view(idle).expect("there").migrated);
}

#[test]
fn a_part_of_a_block_ends_writers_and_loses_nothing() {
    let world = World::new(4 * MIB, config(0));
    let peer = world.peer();
    let id = world.allocate(peer, MIB);
    let windows = world.windows(&world.map(peer, id, Range::ALL, MapFlags::WRITE), true);
    assert!(windows[0].1.store(100, b"peer"));
    world.pool.write(id, 200, b"cpu").expect("write");
    assert!(!windows[0].1.is_live());
    assert_eq!(world.pool.read(id, 100, 4).expect("read"), b"peer");
    assert_eq!(world.pool.read(id, 200, 3).expect("read"), b"cpu");
    let windows = world.windows(&world.map(peer, id, Range::ALL, MapFlags::empty()), false);
    world.pool.write(id, 300, b"more").expect("write");
    assert_eq!(windows[0].1.load(300, 4).expect("readers stay"), b"more");
}

#[test]
fn growth_shows_in_the_next_map_only() {
    let world = World::new(8 * MIB, config(0));
    let peer = world.peer();
    let id = world.allocate(peer, MIB);
    let before = world.windows(&world.map(peer, id, Range::ALL, MapFlags::WRITE), true);
    world.pool.grow(peer.owner.session, id, 2 * MIB).expect("room");
    assert!(before[0].1.store(0, b"still mapped"));
    let after = world.windows(&world.map(peer, id, Range::ALL, MapFlags::WRITE), true);
    assert_eq!(after[0].0.end, 2 * MIB);
    assert_eq!(after[0].1.load(0, 12).expect("live"), b"still mapped");
    assert_eq!(after[0].1.load(MIB, 4096).expect("live"), [0; 4096]);
}

#[test]
fn the_end_of_a_session_returns_everything() {
    let world = World::new(8 * MIB, config(8 * MIB));
    let (owner, importer) = (world.peer(), world.peer());
    let ids: Vec<u64> = (0..6).map(|_| world.allocate(owner, 2 * MIB)).collect();
    let windows: Vec<_> =
        ids.iter().flat_map(|id| world.windows(&world.map(importer, *id, Range::ALL, MapFlags::WRITE), true)).collect();
    assert!(!windows.is_empty());
    let kept = world.allocate(importer, 4096);
    world.pool.close_session(owner.owner.session);
    assert!(windows.iter().all(|window| !window.1.is_live()));
    assert!(ids.iter().all(|id| world.pool.view(*id).is_err()));
    assert_eq!(world.pool.record().allocations.len(), 1);
    world.pool.free(importer.owner.session, kept).expect("free");
    world.assert_empty();
}
