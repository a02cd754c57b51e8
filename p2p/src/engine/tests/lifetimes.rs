use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use peerfs_abi::{MapFlags, Trigger};

use super::world::*;
use crate::api::*;
use crate::types::*;

#[test]
fn a_client_that_ends_takes_only_what_is_its_own() {
    let world = World::new();
    let (a, b) = (world.peer(), world.peer());
    let shared = world.map(a, Range::new(0, 4096));
    let other = world.map(b, Range::new(0, 4096));
    world.map_write(a, Range::new(CHUNK_BYTES, 4096));
    // Nobody is waited for: the clock stands still.
    world.engine.close_session(a.session);
    assert_eq!(world.log(), ["open", "open", "writable", "cut", "write-back"]);
    assert!(world.engine.grant(grants(&shared)[0].id).is_none());
    assert!(world.engine.grant(grants(&other)[0].id).is_some());
    let snapshot = world.engine.snapshot();
    assert_eq!((snapshot.sessions, snapshot.contexts.len(), snapshot.mappings.len()), (1, 1, 1));
    world.engine.close_session(b.session);
    world.assert_clean();
    assert_eq!((world.custody.pages(), world.engine.grants.len(), world.engine.contexts.len()), (0, 0, 0));
}

#[test]
fn a_client_that_ends_in_the_middle_of_a_map_leaves_nothing() {
    let world = World::new();
    let peer = world.peer();
    world.hook_quiesce(move |engine, _| engine.close_session(peer.session));
    let answer = world.map(peer, Range { start: 0, end: 8 * MIB });
    assert!(grants(&answer).is_empty(), "{answer:?}");
    world.assert_clean();
    assert_eq!(world.engine.grants.len(), 0);
}

#[test]
fn a_holder_that_unmaps_or_ends_during_a_revocation_counts_as_acknowledging() {
    let world = World::new();
    let (a, b) = (world.peer(), world.peer());
    let mapping = world.map(a, Range::new(0, 4096)).mapping.expect("mapping");
    world.map(b, Range::new(0, 4096));
    std::thread::scope(|scope| {
        let revoke = scope.spawn(|| world.engine.revoke(None, Range::ALL, Trigger::Administrator));
        world.clock.await_sleepers(1);
        world.unmap(a, mapping).expect("unmap");
        world.engine.close_session(b.session);
        assert_eq!(revoke.join().expect("revoke").enforced, 0);
    });
    world.assert_clean();
}

#[test]
fn events_wake_and_are_queued_in_order() {
    let world = World::new();
    let woken = Arc::new(AtomicU32::new(0));
    let count = woken.clone();
    let wake = Arc::new(move || {
        count.fetch_add(1, Ordering::SeqCst);
    });
    let session = world.engine.open_session(me().uid, wake).expect("session");
    let template = world.peer();
    let importer = world.engine.live_context(template.context, me()).expect("context").importer.clone();
    let bound = world.engine.bind_context(session, importer, me(), None).expect("bind");
    let peer = Peer { session, context: bound.id, sequence: bound.sequence_grant };
    world.map(peer, Range { start: 0, end: 3 * CHUNK_BYTES });
    assert!(!world.engine.has_events(session));
    std::thread::scope(|scope| {
        let revoke = scope.spawn(|| world.engine.revoke(None, Range::ALL, Trigger::Administrator));
        world.clock.await_sleepers(1);
        assert_eq!((woken.load(Ordering::SeqCst), world.engine.has_events(session)), (1, true));
        let first = world.engine.events(session, 2);
        let rest = world.engine.events(session, 10);
        assert_eq!((first.len(), rest.len()), (2, 1));
        assert_eq!((first[0].file_offset, first[1].file_offset, rest[0].file_offset), (0, CHUNK_BYTES, 2 * CHUNK_BYTES));
        first.iter().chain(&rest).for_each(|event| assert!(world.engine.ack(session, GrantId(event.grant_id))));
        assert_eq!(revoke.join().expect("revoke").latency, Duration::ZERO);
    });
}

#[test]
fn sequence_slots_are_reused_with_growing_numbers() {
    let world = World::new();
    let peer = world.peer();
    let mut last = None;
    for _ in 0..5 {
        let answer = world.map(peer, Range::new(0, 4096));
        let part = grants(&answer)[0];
        assert_ne!(part.sequence_slot, 0, "slot 0 says that the server is gone");
        if let Some((slot, sequence)) = last {
            assert_eq!(part.sequence_slot, slot);
            assert!(part.sequence > sequence);
        }
        last = Some((part.sequence_slot, part.sequence));
        world.unmap(peer, answer.mapping.expect("mapping")).expect("unmap");
    }
}

#[test]
fn nothing_is_mapped_after_shut_down() {
    let world = World::with(EngineConfig { deadline: Duration::ZERO, ..Default::default() }, 64 * MIB);
    let peer = world.peer();
    world.map_write(peer, Range { start: 0, end: 8 * MIB });
    world.engine.shut_down().expect("shut down");
    world.assert_clean();
    assert_eq!(refusal(&world.map(peer, Range::new(0, 4096))), Some(peerfs_abi::Reason::Busy));
}

#[test]
fn an_exporter_that_is_gone_is_an_error() {
    let world = World::new();
    let peer = world.peer();
    let request = MapRequest {
        object: ObjectId(99),
        range: Range::new(0, 4096),
        flags: MapFlags::empty(),
        handle_writable: false,
        uid: 0,
        cache_probe: None,
    };
    let call = MapCall { context: peer.context, client: me(), request: &request, mapping: None, segments_max: 8 };
    let missing = Err(MapError::NoObject { object: ObjectId(99) });
    assert_eq!(world.engine.device_map(&call), missing);
    let World { engine, files, .. } = world;
    drop(files);
    assert_eq!(engine.device_map(&call), missing);
}
