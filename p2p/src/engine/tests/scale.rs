//! Many holders, and windows of a batch that do not wait for each other.

use std::time::Duration;

use peerfs_abi::Trigger;

use super::world::*;
use crate::api::*;
use crate::types::*;

#[test]
fn a_window_whose_holders_have_acknowledged_is_cut_at_once_beside_one_that_hangs() {
    let world = World::new();
    let (good, hung) = (world.peer(), world.peer());
    let quick = grants(&world.map(good, Range::new(0, 4096)))[0].id;
    world.map(hung, Range::new(CHUNK_BYTES, 4096));
    std::thread::scope(|scope| {
        let revoke = scope.spawn(|| world.engine.revoke(None, Range::ALL, Trigger::Administrator));
        world.clock.await_sleepers(1);
        assert!(world.engine.ack(good.session, quick));
        // The revoker sleeps again: what was free is cut by now, and nothing is written back.
        while !world.log().contains(&"cut".to_owned()) {
            std::thread::yield_now();
        }
        assert!(!world.log().contains(&"write-back".to_owned()));
        world.clock.advance(Duration::from_millis(100));
        let report = revoke.join().expect("revoke");
        assert_eq!((report.revoked, report.enforced, report.latency), (2, 1, Duration::from_millis(100)));
    });
    assert_eq!(world.log()[2..], ["cut", "cut", "cut", "write-back", "write-back"], "the deadline cuts whatever is left");
    world.assert_clean();
}

#[test]
fn thousands_of_holders_of_one_window_come_and_go_in_any_order() {
    const HOLDERS: usize = 3000;
    let world = World::new();
    let peers = [world.peer(), world.peer(), world.peer()];
    let map = |number: usize| (peers[number % 3], world.map(peers[number % 3], Range::new((number % 512) as u64 * 4096, 4096)));
    world.map(peers[0], Range::new(0, CHUNK_BYTES));
    let held: Vec<_> = (0..HOLDERS).map(map).collect();
    assert_eq!(world.engine.mapping_count(Some(FILE)), HOLDERS as u64 + 1);
    // Every second one leaves, first to last and last to first by turns.
    for number in 0..HOLDERS / 2 {
        let index = if number % 2 == 0 { number } else { HOLDERS - number };
        world.unmap(held[index].0, held[index].1.mapping.expect("mapping")).expect("unmap");
    }
    assert_eq!(world.log(), ["open"]);
    let left = HOLDERS / 2 + 1;
    std::thread::scope(|scope| {
        let revoke = scope.spawn(|| world.engine.revoke(None, Range::ALL, Trigger::Administrator));
        world.clock.await_sleepers(1);
        let told: usize = peers.iter().map(|peer| world.engine.events(peer.session, HOLDERS).len()).sum();
        assert_eq!(told, left);
        // One session's end counts as the acknowledgement of all its holders.
        world.engine.close_session(peers[1].session);
        world.clock.advance(Duration::from_millis(100));
        let report = revoke.join().expect("revoke");
        assert_eq!(report.revoked, left as u64);
        assert!(report.enforced > 0 && report.enforced < report.revoked, "{report:?}");
    });
    assert_eq!((world.engine.mapping_count(None), world.engine.totals().windows), (0, 0));
    world.assert_clean();
}

#[test]
fn an_object_mapped_in_pieces_gets_whole_windows_from_then_on() {
    let config = EngineConfig { deadline: Duration::ZERO, ..Default::default() };
    let world = World::with(config, 64 * MIB);
    let peer = world.peer();
    let piece = |chunk: u64, block: u64| world.map(peer, Range::new(chunk * CHUNK_BYTES + block * 4096, 4096));
    assert_eq!(grants(&piece(0, 3))[0].length, 4096, "nothing is known of the object yet");
    assert_eq!(grants(&piece(0, 9))[0].length, CHUNK_BYTES, "rebuilt, as a map of other blocks came");
    for chunk in 0..4 {
        for block in [1, 7, 500] {
            assert_eq!(grants(&piece(chunk, block))[0].length, CHUNK_BYTES);
        }
    }
    assert_eq!(world.log().iter().filter(|what| *what == "cut").count(), 1, "one revocation for all of it");
}

#[test]
fn a_whole_window_never_pushes_another_out() {
    let config = EngineConfig { deadline: Duration::ZERO, ..Default::default() };
    // A block short of three chunks.
    let world = World::with(config, 3 * CHUNK_BYTES - 4096);
    let peer = world.peer();
    world.map(peer, Range::new(0, 4096));
    world.map(peer, Range::new(8192, 4096));
    world.map(peer, Range::new(CHUNK_BYTES, 4096));
    assert_eq!(world.engine.totals().windows, 2);
    let part = grants(&world.map(peer, Range::new(2 * CHUNK_BYTES, 4096)))[0];
    assert_eq!(part.length, 4096, "as much as was asked for, where a whole chunk has no room");
}
