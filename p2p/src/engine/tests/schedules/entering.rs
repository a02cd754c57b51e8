//! Who joins a window, who builds it, and who finds it going.

use peerfs_abi::{MapFlags, Trigger};

use super::aperture::WatchedAperture;
use super::client::{Client, beside};
use super::ending::assert_nothing_left;
use super::{BLOCK, FILE, MIB, World, explore, grants, hasty, patient};
use crate::api::EngineConfig;
use crate::engine::tests::world::Peer;
use crate::sync::thread;
use crate::types::Range;

fn map(world: &World, peer: Peer, range: Range, flags: MapFlags) {
    let answer = world.map_flags(peer, FILE, range, flags);
    assert_eq!(grants(&answer).len(), 1, "a map was lost: {answer:?}");
}

/// Two want one chunk, one of them to write it (who finds a window that may only be read replaces it), and a third takes
/// it back: both are granted a window, and all of it ends. Nobody has a deadline.
#[test]
fn two_maps_of_one_chunk_and_a_revocation() {
    explore(|| {
        let aperture = WatchedAperture::new(64 * MIB);
        let world = World::on(patient(), aperture.clone());
        let (reader, writer) = (Client::new(&world), Client::new(&world));
        beside(&world, &[&reader, &writer], |scope| {
            scope.spawn(|| map(&world, reader.peer, BLOCK, MapFlags::empty()));
            scope.spawn(|| map(&world, writer.peer, BLOCK, MapFlags::WRITE));
            scope.spawn(|| world.engine.revoke(Some(FILE), BLOCK, Trigger::Administrator));
        });
        assert!(aperture.live().len() <= 1);
        world.engine.close_session(reader.peer.session);
        world.engine.close_session(writer.peer.session);
        assert_nothing_left(&world, &aperture, &[]);
    });
}

/// Different blocks of one chunk: a window cannot grow, so each map may have to replace the other's.
#[test]
fn maps_of_different_blocks_of_one_chunk() {
    explore(|| {
        let aperture = WatchedAperture::new(64 * MIB);
        let world = World::on(hasty(), aperture.clone());
        let (first, second) = (world.peer(), world.peer());
        thread::scope(|scope| {
            scope.spawn(|| map(&world, first, BLOCK, MapFlags::empty()));
            scope.spawn(|| map(&world, second, Range::new(8192, 4096), MapFlags::WRITE));
        });
        assert_eq!(aperture.live().len(), 1);
        world.engine.close_session(first.session);
        world.engine.close_session(second.session);
        assert_nothing_left(&world, &aperture, &[]);
    });
}

/// A client that goes while it maps leaves nothing, and takes nothing from others.
#[test]
fn a_map_of_a_session_that_ends_leaves_nothing() {
    explore(|| {
        let aperture = WatchedAperture::new(64 * MIB);
        let world = World::on(hasty(), aperture.clone());
        let (going, staying) = (world.peer(), world.peer());
        thread::scope(|scope| {
            // Refused, or granted and ended.
            scope.spawn(|| world.map_flags(going, FILE, BLOCK, MapFlags::empty()));
            scope.spawn(|| map(&world, staying, BLOCK, MapFlags::WRITE));
            scope.spawn(|| world.engine.close_session(going.session));
        });
        assert_eq!((world.engine.mapping_count(None), aperture.live().len()), (1, 1));
        world.engine.close_session(staying.session);
        assert_nothing_left(&world, &aperture, &[]);
    });
}

/// A mapping that grows while it is ended: what it got last ends, too.
#[test]
fn a_mapping_that_grows_while_it_ends_leaves_nothing() {
    explore(|| {
        let aperture = WatchedAperture::new(64 * MIB);
        let world = World::on(hasty(), aperture.clone());
        let peer = world.peer();
        let mapping = world.map(peer, BLOCK).mapping.expect("a mapping");
        thread::scope(|scope| {
            // An error where the mapping is gone already.
            scope.spawn(|| world.try_map(peer, Some(mapping), FILE, Range::new(4 * MIB, 4096), MapFlags::WRITE).ok());
            scope.spawn(|| world.unmap(peer, mapping).expect("its own"));
        });
        assert_nothing_left(&world, &aperture, &[peer]);
    });
}

/// Room for one window: each map takes it from the other, nobody gets more than there is, and nobody waits for ever.
#[test]
fn maps_that_push_each_other_out() {
    explore(|| {
        let config = EngineConfig { evict_idle: std::time::Duration::ZERO, ..hasty() };
        let aperture = WatchedAperture::new(8192);
        let world = World::on(config, aperture.clone());
        let peers = [world.peer(), world.peer(), world.peer()];
        thread::scope(|scope| {
            for (chunk, peer) in peers.iter().enumerate() {
                let world = &world;
                scope.spawn(move || world.map(*peer, Range::new(chunk as u64 * 2 * MIB, 4096)));
            }
        });
        assert_eq!(aperture.live().len(), 2);
        peers.iter().for_each(|peer| world.engine.close_session(peer.session));
        assert_nothing_left(&world, &aperture, &[]);
    });
}
