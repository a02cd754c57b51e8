use std::time::Duration;

use peerfs_abi::Trigger;

use super::world::*;
use crate::api::*;
use crate::clock::Clock;
use crate::types::*;

#[test]
fn an_acknowledging_holder_is_not_waited_for_longer() {
    let world = World::new();
    let peer = world.peer();
    let grant = grants(&world.map_write(peer, Range::new(0, 4096)))[0];
    let guard = std::thread::scope(|scope| {
        let close = scope.spawn(|| world.engine.close_range(FILE, Range::new(0, 100), Trigger::Truncate));
        world.clock.await_sleepers(1);
        let session = world.engine.session_of(peer.session).expect("session");
        assert_ne!(session.page.load(grant.sequence_slot as usize), Some(grant.sequence), "stale before the ack");
        let events = world.engine.events(peer.session, 10);
        assert_eq!(events.len(), 1);
        assert_eq!((events[0].grant_id, events[0].trigger), (grant.id.0, Trigger::Truncate.code()));
        assert!(!world.engine.ack(SessionId(999), grant.id));
        world.clock.advance(Duration::from_millis(3));
        assert!(world.engine.ack(peer.session, grant.id));
        close.join().expect("close")
    });
    let expected = RevokeReport { revoked: 1, enforced: 0, latency: Duration::from_millis(3) };
    assert_eq!(guard.report(), expected);
    assert_eq!(world.log(), ["open", "writable", "cut", "write-back"]);
    drop(guard);
    world.assert_clean();
}

#[test]
fn a_window_being_revoked_is_listed_with_those_that_are_waited_for() {
    let world = World::new();
    let (first, second) = (world.peer(), world.peer());
    let grant = grants(&world.map(first, Range::new(0, 4096)))[0].id;
    world.map(second, Range::new(0, 4096));
    let listed = || world.engine.window_records(8).0.iter().map(|window| (window.holders, window.state)).collect::<Vec<_>>();
    let live = listed();
    let (told, acknowledged) = std::thread::scope(|scope| {
        scope.spawn(|| world.engine.revoke(Some(FILE), Range::new(0, 1), Trigger::Administrator));
        world.clock.await_sleepers(1);
        let told = listed();
        world.engine.ack(first.session, grant);
        let acknowledged = listed();
        world.clock.advance(Duration::from_millis(100));
        (told, acknowledged)
    });
    assert_eq!((live, told, acknowledged), (vec![(2, "live")], vec![(2, "revoking")], vec![(1, "revoking")]));
    assert_eq!(listed(), []);
}

#[test]
fn a_hung_holder_is_cut_at_the_deadline_while_another_goes_on() {
    let world = World::new();
    let (hung, good) = (world.peer(), world.peer());
    world.map(hung, Range::new(0, 4096));
    let other = grants(&world.map(good, Range::new(CHUNK_BYTES, 4096)))[0].id;
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| world.engine.revoke(Some(FILE), Range::new(0, 1), Trigger::Administrator));
        world.clock.await_sleepers(1);
        // The other chunk is revoked and mapped again while the first one waits.
        let quick = scope.spawn(|| world.engine.revoke(Some(FILE), Range::new(CHUNK_BYTES, 1), Trigger::Administrator));
        world.clock.await_sleepers(2);
        assert!(world.engine.ack(good.session, other));
        assert_eq!(quick.join().expect("revoke").enforced, 0);
        assert_eq!(grants(&world.map(good, Range::new(CHUNK_BYTES, 4096))).len(), 1);
        world.clock.advance(Duration::from_millis(99));
        assert!(!slow.is_finished());
        world.clock.advance(Duration::from_millis(1));
        let report = slow.join().expect("revoke");
        assert_eq!((report.enforced, report.latency), (1, Duration::from_millis(100)));
    });
    assert_eq!(world.engine.revocation_totals(), (2, 1));
    let record = &world.engine.snapshot().revocations[0];
    assert_eq!((record.trigger, record.cut.count, record.cut.max_ns), ("Administrator", 2, 100_000_000));
}

#[test]
fn many_chunks_share_one_deadline_and_are_cut_before_any_write_back() {
    let world = World::new();
    let peer = world.peer();
    world.map_write(peer, Range { start: 0, end: 8 * MIB });
    std::thread::scope(|scope| {
        let revoke = scope.spawn(|| world.engine.revoke(None, Range::ALL, Trigger::Administrator));
        world.clock.await_sleepers(1);
        assert_eq!(world.engine.events(peer.session, 10).len(), 4);
        // A second revoker of one of the chunks joins, and returns when it is gone.
        let join = scope.spawn(|| world.engine.close_range(FILE, Range::new(0, 1), Trigger::Punch).report());
        world.clock.advance(Duration::from_millis(100));
        let report = revoke.join().expect("revoke");
        assert_eq!((report.revoked, report.enforced, report.latency), (4, 4, Duration::from_millis(100)));
        assert_eq!(join.join().expect("join"), RevokeReport::default());
    });
    let log = world.log();
    let tail: Vec<_> = log[log.len() - 8..].iter().map(String::as_str).collect();
    assert_eq!(tail, ["cut", "cut", "cut", "cut", "write-back", "write-back", "write-back", "write-back"]);
    world.assert_clean();
}

#[test]
fn the_unread_queue_of_a_client_does_not_delay_the_cut() {
    let config = EngineConfig { events_per_session: 1, ..Default::default() };
    let world = World::with(config, 64 * MIB);
    let peer = world.peer();
    world.map(peer, Range { start: 0, end: 2 * CHUNK_BYTES });
    std::thread::scope(|scope| {
        let revoke = scope.spawn(|| world.engine.revoke(None, Range::ALL, Trigger::Administrator));
        world.clock.await_sleepers(1);
        world.clock.advance(Duration::from_millis(100));
        assert_eq!(revoke.join().expect("revoke").enforced, 2);
    });
    assert_eq!(world.engine.events(peer.session, 10).len(), 1);
}

#[test]
fn what_cannot_be_written_back_is_held_and_tried_again() {
    let world = World::new();
    let peer = world.peer();
    world.map_write(peer, Range::new(0, 4096));
    world.aperture.fail_write_back.store(true, std::sync::atomic::Ordering::SeqCst);
    world.engine.close_session(peer.session);
    assert_eq!(world.engine.snapshot().windows_held, 1);
    assert!(world.engine.flush_object(FILE).is_err());
    assert!(world.engine.shut_down().is_err());
    world.aperture.fail_write_back.store(false, std::sync::atomic::Ordering::SeqCst);
    world.engine.flush_object(FILE).expect("the device works again");
    world.engine.flush_object(FILE).expect("nothing is left");
    let log = world.log();
    assert_eq!(log[2..], ["cut", "write-back failed", "write-back failed", "write-back failed", "write-back"]);
    world.assert_clean();
}

#[test]
fn flush_reaches_live_windows() {
    let world = World::new();
    let peer = world.peer();
    world.map_write(peer, Range::new(0, 4096));
    world.engine.flush_object(FILE).expect("flush");
    assert_eq!(world.log(), ["open", "writable", "flush"]);
}

#[test]
fn no_map_of_a_closed_range_succeeds_until_it_opens() {
    let world = World::new();
    let peer = world.peer();
    let guard = world.engine.close_range(FILE, Range::new(0, 4096), Trigger::Punch);
    assert_eq!(grants(&world.map(peer, Range::new(CHUNK_BYTES, 4096))).len(), 1, "elsewhere it is open");
    std::thread::scope(|scope| {
        let map = scope.spawn(|| world.map(peer, Range::new(0, 4096)));
        world.clock.await_sleepers(1);
        world.clock.advance(Duration::from_millis(200));
        let answer = map.join().expect("map");
        assert_eq!(refusal(&answer), Some(peerfs_abi::Reason::Busy));
        assert!(answer.retry_after_ms > 0);
        let map = scope.spawn(|| world.map(peer, Range::new(0, 4096)));
        world.clock.await_sleepers(1);
        drop(guard);
        assert_eq!(grants(&map.join().expect("map")).len(), 1);
    });
}

/// Seeded by nothing: the schedule is the kernel's. The property holds for every one of them.
#[test]
fn racing_maps_never_live_in_a_closed_range() {
    let config = EngineConfig { deadline: Duration::ZERO, busy_wait: Duration::ZERO, ..Default::default() };
    let world = World::with(config, 64 * MIB);
    let range = Range::new(0, 64 * 1024);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let peer = world.peer();
                for _ in 0..300 {
                    let answer = world.map_write(peer, range);
                    if let Some(mapping) = answer.mapping {
                        world.unmap(peer, mapping).expect("unmap");
                    }
                }
                world.engine.close_session(peer.session);
            });
        }
        for trigger in [Trigger::Truncate, Trigger::Punch] {
            let world = &world;
            scope.spawn(move || {
                for _ in 0..300 {
                    let guard = world.engine.close_range(FILE, range, trigger);
                    assert!(!world.engine.is_mapped(Some(FILE)), "a chunk lives in a closed range");
                    drop(guard);
                }
            });
        }
    });
    assert!(world.clock.now() > Duration::ZERO);
    world.assert_clean();
}

#[test]
fn one_mapping_is_revoked_by_its_number_and_the_last_revocations_are_remembered() {
    let world = World::new();
    let (first, second) = (world.peer(), world.peer());
    let world = &world;
    let revoked = world.map(first, Range::new(0, 2 * CHUNK_BYTES));
    let spared = world.map(second, Range::new(2 * CHUNK_BYTES, 4096));
    assert_eq!(world.engine.revoke_mapping(MappingId(u64::MAX), Trigger::Administrator), None);
    std::thread::scope(|scope| {
        let number = revoked.mapping.expect("mapped");
        let revoke = scope.spawn(move || world.engine.revoke_mapping(number, Trigger::Administrator));
        world.clock.await_sleepers(1);
        for grant in grants(&revoked) {
            assert!(world.engine.ack(first.session, grant.id));
        }
        let report = revoke.join().expect("revoke").expect("it is there");
        assert_eq!((report.revoked, report.enforced), (2, 0));
    });
    world.clock.advance(Duration::from_millis(7));
    let snapshot = world.engine.snapshot();
    let live: Vec<_> = snapshot.mappings.iter().filter(|mapping| mapping.grants > 0).map(|mapping| mapping.mapping).collect();
    assert_eq!(live, [spared.mapping.expect("mapped").0]);
    let windows: Vec<_> = world.engine.window_records(8).0.iter().map(|window| (window.object, window.offset)).collect();
    assert_eq!(windows, [(FILE.0, 2 * CHUNK_BYTES)]);
    let [record] = snapshot.last_revocations.as_slice() else { panic!("{:?}", snapshot.last_revocations) };
    assert_eq!((record.number, record.trigger, record.revoked, record.enforced, record.age_ms), (0, "Administrator", 2, 0, 7));
}
