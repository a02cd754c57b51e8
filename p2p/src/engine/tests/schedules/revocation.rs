//! One revocation beside acknowledgements, unmaps, clients that go, and others.
//! That every window is cut before it is written back, and once, the aperture sees.

use peerfs_abi::{MapFlags, Trigger};

use super::aperture::WatchedAperture;
use super::client::{Client, beside};
use super::ending::assert_nothing_left;
use super::{BLOCK, FILE, MIB, World, explore, grants, hasty, patient};
use crate::engine::tests::world::Peer;
use crate::sync::thread;
use crate::types::{MappingId, Range};

fn mapped(world: &World, peer: Peer, flags: MapFlags) -> MappingId {
    let answer = world.map_flags(peer, FILE, BLOCK, flags);
    assert_eq!(grants(&answer).len(), 1);
    answer.mapping.expect("a mapping")
}

/// One holder acknowledges, one unmaps and one goes: each counts as an acknowledgement, and is the last one in some
/// schedules. Both revokers return, without a deadline to save them.
#[test]
fn every_way_to_let_go_wakes_the_revoker() {
    explore(|| {
        let aperture = WatchedAperture::new(64 * MIB);
        let world = World::on(patient(), aperture.clone());
        let (client, unmapping, going) = (Client::new(&world), world.peer(), world.peer());
        for peer in [client.peer, going] {
            mapped(&world, peer, MapFlags::empty());
        }
        let mapping = mapped(&world, unmapping, MapFlags::empty());
        beside(&world, &[&client], |scope| {
            scope.spawn(|| world.engine.revoke(None, Range::ALL, Trigger::Administrator));
            scope.spawn(|| drop(world.engine.close_range(FILE, BLOCK, Trigger::Truncate)));
            scope.spawn(|| world.unmap(unmapping, mapping).expect("its own"));
            scope.spawn(|| world.engine.close_session(going.session));
        });
        assert_nothing_left(&world, &aperture, &[client.peer, unmapping]);
    });
}

/// The same where the deadline comes at once: acknowledgements before the cut, beside it and after.
#[test]
fn a_cut_meets_acknowledgements_and_leaves_nothing() {
    explore(|| {
        let aperture = WatchedAperture::new(64 * MIB);
        let world = World::on(hasty(), aperture.clone());
        let (client, unmapping, going) = (Client::new(&world), world.peer(), world.peer());
        mapped(&world, client.peer, MapFlags::WRITE);
        let mapping = mapped(&world, unmapping, MapFlags::empty());
        mapped(&world, going, MapFlags::WRITE);
        beside(&world, &[&client], |scope| {
            scope.spawn(|| {
                let report = world.engine.revoke(None, Range::ALL, Trigger::Administrator);
                assert!(report.enforced <= report.revoked, "{report:?}");
            });
            scope.spawn(|| world.unmap(unmapping, mapping).expect("its own"));
            scope.spawn(|| world.engine.close_session(going.session));
        });
        assert_nothing_left(&world, &aperture, &[client.peer, unmapping]);
    });
}

/// Several written windows in one revocation: its helpers write each back once, and a flush beside them waits for all.
#[test]
fn a_flush_beside_a_revocation_finds_everything_on_the_device() {
    explore(|| {
        let aperture = WatchedAperture::new(64 * MIB);
        let world = World::on(hasty(), aperture.clone());
        let peer = world.peer();
        world.map_write(peer, Range { start: 0, end: 6 * MIB });
        assert_eq!(aperture.live().len(), 3);
        thread::scope(|scope| {
            scope.spawn(|| world.engine.revoke(None, Range::ALL, Trigger::Administrator));
            scope.spawn(|| world.engine.flush_object(FILE).expect("the device works"));
            scope.spawn(|| drop(world.engine.close_range(FILE, Range::new(2 * MIB, 4096), Trigger::Punch)));
        });
        assert_nothing_left(&world, &aperture, &[peer]);
    });
}
