//! Maps, and those who close the range because its blocks are about to change.

use peerfs_abi::{MapFlags, Reason, Trigger};

use super::aperture::WatchedAperture;
use super::client::{Client, beside};
use super::ending::assert_nothing_left;
use super::{BLOCK, FILE, MIB, World, explore, grants, hasty, patient, refusal};
use crate::api::MapAnswer;
use crate::engine::object::{Chunk, ChunkState};
use crate::engine::tests::world::Peer;
use crate::sync::{lock, thread};
use crate::types::Range;

fn map_and_unmap(world: &World, peer: Peer, flags: MapFlags) {
    let answer = world.map_flags(peer, FILE, BLOCK, flags);
    assert_granted(&answer);
    world.unmap(peer, answer.mapping.expect("a mapping")).expect("its own");
}

fn assert_granted(answer: &MapAnswer) {
    assert_eq!(grants(answer).len(), 1, "a map was lost: {answer:?}");
}

/// From `close_range` on, until the guard goes, no device reaches the range; and each map is let in at last.
#[test]
fn nothing_lives_in_a_closed_range() {
    explore(|| {
        let aperture = WatchedAperture::new(64 * MIB);
        let world = World::on(hasty(), aperture.clone());
        let (reader, writer) = (world.peer(), world.peer());
        thread::scope(|scope| {
            scope.spawn(|| map_and_unmap(&world, reader, MapFlags::empty()));
            scope.spawn(|| map_and_unmap(&world, writer, MapFlags::WRITE));
            scope.spawn(|| {
                for trigger in [Trigger::Truncate, Trigger::Punch] {
                    let guard = world.engine.close_range(FILE, BLOCK, trigger);
                    assert!(aperture.live().is_empty(), "a window lives in a closed range");
                    assert!(!world.engine.is_mapped(Some(FILE)), "a chunk lives in a closed range");
                    drop(guard);
                }
            });
        });
        assert_nothing_left(&world, &aperture, &[reader, writer]);
    });
}

/// The same with importers that have to acknowledge, and a second closer of the same range.
#[test]
fn two_closers_of_one_range_both_find_it_empty() {
    explore(|| {
        let aperture = WatchedAperture::new(64 * MIB);
        let world = World::on(patient(), aperture.clone());
        let client = Client::new(&world);
        let close = |trigger| {
            let guard = world.engine.close_range(FILE, BLOCK, trigger);
            assert!(aperture.live().is_empty(), "a window lives in a closed range");
            drop(guard);
        };
        beside(&world, &[&client], |scope| {
            scope.spawn(|| map_and_unmap(&world, client.peer, MapFlags::WRITE));
            scope.spawn(|| close(Trigger::Truncate));
            scope.spawn(|| close(Trigger::Unlink));
        });
        assert_nothing_left(&world, &aperture, &[client.peer]);
    });
}

/// Who shares blocks ends what may write them, and only that; no device may write them until the guard goes.
#[test]
fn nobody_writes_blocks_that_are_being_shared() {
    explore(|| {
        let aperture = WatchedAperture::new(64 * MIB);
        let world = World::on(hasty(), aperture.clone());
        let (reader, writer) = (world.peer(), world.peer());
        let assert_unwritable = || {
            let object = world.engine.object_of(FILE).expect("closed");
            let state = lock(&object.state);
            let writable = |chunk: &Chunk| match &chunk.state {
                ChunkState::Pending(_) => false,
                ChunkState::Active(active) | ChunkState::Revoking(active) => active.writable,
            };
            assert!(!state.chunks.values().any(writable), "a device may write blocks of two owners");
        };
        thread::scope(|scope| {
            scope.spawn(|| map_and_unmap(&world, reader, MapFlags::empty()));
            scope.spawn(|| map_and_unmap(&world, writer, MapFlags::WRITE));
            scope.spawn(|| {
                let guard = world.engine.close_before_sharing(FILE, BLOCK).expect("nothing is pinned");
                assert_unwritable();
                drop(guard);
                let guard = world.engine.close_to_writes(FILE, BLOCK);
                assert_unwritable();
                drop(guard);
            });
        });
        assert_nothing_left(&world, &aperture, &[reader, writer]);
    });
}

/// Unmounting leaves nothing, whatever is on its way.
#[test]
fn nothing_is_mapped_after_the_engine_was_shut_down() {
    explore(|| {
        let aperture = WatchedAperture::new(64 * MIB);
        let world = World::on(hasty(), aperture.clone());
        let (reader, pinner) = (world.peer(), world.peer());
        thread::scope(|scope| {
            scope.spawn(|| world.map(reader, BLOCK));
            scope.spawn(|| world.map_flags(pinner, FILE, Range::new(4 * MIB, 4096), MapFlags::PIN));
            scope.spawn(|| world.engine.shut_down().expect("the device works"));
        });
        assert!(aperture.live().is_empty(), "a window outlives the mount");
        assert_eq!(refusal(&world.map(reader, BLOCK)), Some(Reason::Busy), "mapped after the end");
        assert!(!world.engine.is_mapped(None));
    });
}
