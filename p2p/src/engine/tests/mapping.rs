use std::sync::atomic::Ordering;
use std::time::Duration;

use peerfs_abi::{MapFlags, Reason, Trigger};
use peerfs_blockdev::DeviceEvent;

use super::world::*;
use crate::api::*;
use crate::sync::lock;
use crate::types::*;

#[test]
fn a_file_maps_as_one_segment_per_chunk() {
    let world = World::new();
    let peer = world.peer();
    let answer = world.map(peer, Range { start: 0, end: u64::MAX });
    assert_eq!((answer.next_offset, answer.end_offset), (8 * MIB, 8 * MIB));
    assert_eq!(grants(&answer).len(), 4);
    assert_eq!(world.engine.mapping_count(Some(FILE)), 1);
    let snapshot = world.engine.snapshot();
    assert_eq!((snapshot.windows, snapshot.mappings[0].grants, snapshot.contexts.len()), (4, 4, 1));
    world.unmap(peer, answer.mapping.expect("mapping")).expect("unmap");
    assert_eq!(world.engine.moved(FILE).direct(), 4096);
    world.assert_clean();
}

#[test]
fn answers_are_bounded_and_continue() {
    let world = World::new();
    let peer = world.peer();
    let range = Range { start: 100, end: 8 * MIB };
    let request = MapRequest { object: FILE, range, flags: MapFlags::empty(), handle_writable: false, uid: 0, cache_probe: None };
    let mut at = range.start;
    let mut mapping = None;
    while at < range.end {
        let request = MapRequest { range: Range { start: at, ..range }, ..request.clone() };
        let call = MapCall { context: peer.context, client: me(), request: &request, mapping, segments_max: 1 };
        let answer = world.engine.device_map(&call).expect("map");
        assert_eq!(answer.segments.len(), 1);
        assert_eq!(answer.segments[0].range, Range { start: at, end: answer.next_offset });
        assert_eq!(answer.segments[0].access.err(), (at == 100).then_some(Reason::Misaligned));
        mapping = answer.mapping;
        at = answer.next_offset;
    }
    assert_eq!(world.engine.mapping_count(None), 1);
}

#[test]
fn what_nobody_asked_for_refuses_nothing() {
    let config = EngineConfig { deadline: Duration::ZERO, ..Default::default() };
    let asked = Range::new(MIB + MIB / 2, 4096);
    // The aperture holds half a chunk: all of it would go to the first half.
    let small = World::with(config.clone(), MIB);
    // Pages elsewhere in the chunk cannot be dropped.
    let stuck = World::with(config, 64 * MIB);
    *lock(&stuck.files.stuck) = Some(Range::new(MIB, 4096));
    for world in [small, stuck] {
        let (a, b) = (world.peer(), world.peer());
        world.map(a, Range::new(0, 4096));
        let answer = world.map(b, asked);
        assert_eq!((answer.segments.len(), answer.segments[0].access.err()), (1, None));
        // Also where the object is known to be mapped in pieces.
        world.engine.revoke(None, Range::ALL, Trigger::Administrator);
        assert_eq!(world.map(b, asked).segments[0].access.err(), None);
        world.engine.close_session(a.session);
        world.engine.close_session(b.session);
        world.assert_clean();
    }
}

#[test]
fn two_contexts_share_a_window_and_more_blocks_rebuild_it() {
    let world = World::new();
    let (a, b) = (world.peer(), world.peer());
    let first = world.map(a, Range::new(MIB, 8192));
    let second = world.map(b, Range::new(MIB + 4096, 4096));
    assert_eq!(world.log(), ["open"]);
    assert_eq!(grants(&second)[0].offset, 4096);
    // Blocks are missing: the window is revoked, with nobody there to acknowledge, and built for the whole chunk.
    std::thread::scope(|scope| {
        let third = scope.spawn(|| world.map(b, Range::new(0, 4096)));
        world.clock.await_sleepers(1);
        world.clock.advance(Duration::from_millis(100));
        assert_eq!(grants(&third.join().expect("map")).len(), 1);
    });
    assert_eq!(world.log(), ["open", "cut", "write-back", "open"]);
    assert_eq!(world.engine.grant(grants(&first)[0].id), None);
    assert_eq!(world.aperture.used.load(Ordering::SeqCst), CHUNK_BYTES);
}

#[test]
fn grants_go_to_their_owner_once_with_the_access_granted() {
    let world = World::new();
    let peer = world.peer();
    let read = grants(&world.map(peer, Range::new(0, 4096)))[0].id;
    let write = grants(&world.map_write(peer, Range::new(CHUNK_BYTES, 4096)))[0].id;
    let stranger = Client { tgid: me().tgid + 1, ..me() };
    assert_eq!(world.engine.take_grant(read, stranger, false).expect_err("stranger"), GrantError::NotOwner);
    assert_eq!(world.engine.take_grant(read, me(), true).expect_err("write"), GrantError::ReadOnly);
    assert!(world.engine.take_grant(read, me(), false).is_ok());
    assert_eq!(world.engine.take_grant(read, me(), false).expect_err("twice"), GrantError::Taken);
    assert!(world.engine.take_grant(write, me(), true).is_ok());
    assert_eq!(world.engine.take_grant(GrantId(1), me(), false).expect_err("guessed"), GrantError::Gone);
    assert!(world.engine.take_grant(peer.sequence, me(), false).is_ok());
    assert!(world.engine.take_grant(peer.sequence, me(), false).is_ok());
    assert_eq!(world.files.write_grants.load(Ordering::SeqCst), 1);
}

#[test]
fn handles_of_ended_mappings_and_foreign_contexts_are_refused() {
    let world = World::new();
    let (a, b) = (world.peer(), world.peer());
    let old = world.map(a, Range::new(0, 4096)).mapping.expect("mapping");
    let missing = Err(MapError::NoMapping { mapping: old });
    assert_eq!(world.unmap(b, old), missing, "another session");
    world.unmap(a, old).expect("unmap");
    assert_eq!(world.unmap(a, old), missing, "ended");
    // Slots are reused over all shards; the old handle stays stale.
    for _ in 0..64 {
        let new = world.map(a, Range::new(0, 4096)).mapping.expect("mapping");
        assert_ne!(new, old);
        assert_eq!(world.unmap(a, old), missing);
        world.unmap(a, new).expect("unmap");
    }
    let request = MapRequest {
        object: FILE,
        range: Range::new(0, 4096),
        flags: MapFlags::empty(),
        handle_writable: false,
        uid: 0,
        cache_probe: None,
    };
    let client = Client { tgid: me().tgid + 1, ..me() };
    let call = MapCall { context: a.context, client, request: &request, mapping: None, segments_max: 8 };
    assert_eq!(refusal(&world.engine.device_map(&call).expect("map")), Some(Reason::StaleContext));
}

#[test]
fn a_context_ends_with_its_address_space() {
    let world = World::new();
    let mut child = std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().expect("cat");
    let client = Client { tgid: child.id(), ..me() };
    let peer = world.peer();
    let session = world.engine.open_session(me().uid, std::sync::Arc::new(|| {})).expect("session");
    let importer = Importer { flags: peerfs_abi::ImporterFlags::DYNAMIC, ..importer() };
    let own_mem = std::fs::File::open("/proc/self/mem").expect("procfs");
    let wrong = world.engine.bind_context(session, importer.clone(), client, Some(own_mem.into()));
    assert!(matches!(wrong, Err(BindError::NoAddressSpace { .. })), "{wrong:?}");
    let null = std::fs::File::open("/dev/null").expect("null");
    let wrong = world.engine.bind_context(session, importer.clone(), client, Some(null.into()));
    assert!(matches!(wrong, Err(BindError::NoAddressSpace { .. })), "{wrong:?}");
    let bound = world.engine.bind_context(session, importer, client, None).expect("bind");
    let request = MapRequest {
        object: FILE,
        range: Range::new(0, 4096),
        flags: MapFlags::empty(),
        handle_writable: false,
        uid: 0,
        cache_probe: None,
    };
    let call = MapCall { context: bound.id, client, request: &request, mapping: None, segments_max: 8 };
    let alive = world.engine.device_map(&call).expect("map");
    assert_eq!(grants(&alive).len(), 1);
    drop(child.stdin.take());
    child.wait().expect("wait");
    assert_eq!(refusal(&world.engine.device_map(&call).expect("map")), Some(Reason::StaleContext));
    let taken = world.engine.take_grant(grants(&alive)[0].id, client, false);
    assert_eq!(taken.expect_err("dead"), GrantError::NotOwner);
    assert_eq!(grants(&world.map(peer, Range::new(0, 4096))).len(), 1, "others are not affected");
}

#[test]
fn one_user_cannot_take_every_session() {
    let config = EngineConfig { sessions_max: 8, sessions_per_user: 2, ..Default::default() };
    let world = World::with(config, 64 * MIB);
    let open = |uid| world.engine.open_session(uid, std::sync::Arc::new(|| {}));
    let first = open(1000).expect("first");
    open(1000).expect("second");
    assert_eq!(open(1000).expect_err("too many"), SessionError::TooManyOfUser { uid: 1000, limit: 2 });
    open(1001).expect("another user's");
    world.engine.close_session(first);
    open(1000).expect("room again");
}

#[test]
fn who_joins_a_window_gets_nothing_behind_the_end_that_it_was_made_with() {
    let world = World::new();
    let (first, late) = (world.peer(), world.peer());
    let long = 10_000;
    let short = 9000;
    lock(&world.files.sizes).insert(FILE, long);
    let shortened = std::sync::atomic::AtomicBool::new(false);
    // The file is shortened inside its last block, and mapped, after the late one has looked at its size.
    let files = world.files.clone();
    *lock(&world.files.during_survey) = Some(std::sync::Arc::new(Box::new(move |engine: &crate::Engine, object| {
        if !shortened.swap(true, Ordering::SeqCst) {
            engine.revoke(Some(object), Range { start: short, end: u64::MAX }, Trigger::Truncate);
            lock(&files.sizes).insert(object, short);
            engine.size_changed(object, long, short);
            map_on(engine, first, None, object, Range { start: 0, end: u64::MAX }, MapFlags::WRITE).expect("map");
        }
    })));
    let answer = world.map_write(late, Range { start: 0, end: u64::MAX });
    let shape: Vec<_> = answer.segments.iter().map(|segment| (segment.range, segment.access.err())).collect();
    let (inside, behind) = (Range { start: 0, end: short }, Range { start: short, end: long });
    assert_eq!(shape, [(inside, None), (behind, Some(Reason::BeyondEof))]);
}

#[test]
fn one_user_cannot_take_every_mapping() {
    let world = World::with(EngineConfig { mappings_per_user: 2, ..Default::default() }, 64 * MIB);
    let (peer, other) = (world.peer(), world.peer());
    let first = world.map(peer, Range::new(0, 4096));
    world.map(other, Range::new(0, 4096));
    let refused = world.map(other, Range::new(0, 4096));
    assert_eq!((refused.mapping, refusal(&refused)), (None, Some(Reason::ImporterQuota)), "the user's sessions share the limit");
    world.unmap(peer, first.mapping.expect("mapping")).expect("unmap");
    assert_eq!(refusal(&world.map(other, Range::new(0, 4096))), None, "room again");
    world.engine.close_session(peer.session);
    world.engine.close_session(other.session);
    assert!(world.engine.users.is_empty(), "nobody is remembered");
}

#[test]
fn a_grant_whose_side_effects_cannot_be_noted_is_not_given() {
    let world = World::new();
    let peer = world.peer();
    *crate::sync::lock(&world.files.refuse_writes) = Some(Reason::ReadOnly);
    let refused = world.map_write(peer, Range::new(0, 4096));
    assert_eq!(refusal(&refused), Some(Reason::ReadOnly));
    assert!(!world.engine.is_mapped(None), "the window is gone");
    *crate::sync::lock(&world.files.refuse_writes) = None;
    assert_eq!(refusal(&world.map_write(peer, Range::new(0, 4096))), None);
}

#[test]
fn a_query_counts_what_is_in_use_as_a_map_does() {
    let world = World::with(EngineConfig::default(), 4 * CHUNK_BYTES);
    let peer = world.peer();
    crate::sync::lock(&world.files.sizes).insert(FILE, 16 * MIB);
    let asked = |range: Range| {
        let request =
            MapRequest { object: FILE, range, flags: MapFlags::QUERY, handle_writable: false, uid: 0, cache_probe: None };
        let answer = world.engine.device_query(Asker::Context(peer.context, me()), &request, 100).expect("query");
        answer.decisions.iter().map(|d| d.placement == Placement::Fallback(Reason::ApertureFull)).collect::<Vec<_>>()
    };
    let chunks = |from: u64, to: u64| Range { start: from * CHUNK_BYTES, end: to * CHUNK_BYTES };
    let mapped = world.map(peer, chunks(0, 3));
    assert_eq!(asked(chunks(0, 3)), [false], "what is mapped needs no more room");
    assert_eq!(asked(chunks(3, 5)), [false, true], "what was granted just now does not make way");
    let now = world.map(peer, chunks(3, 5));
    assert_eq!(refusal(&now), None, "a part of it is direct");
    assert!(now.segments.iter().any(|segment| segment.access == Err(Reason::ApertureFull)), "{now:?}");
    world.unmap(peer, now.mapping.expect("mapping")).expect("unmap");
    world.clock.advance(Duration::from_secs(1));
    assert_eq!(asked(chunks(3, 5)), [false], "what was not used for long makes way");
    assert_eq!(asked(chunks(3, 7)), [false, true], "but not for more than half of the aperture");
    drop(mapped);
}

#[test]
fn quotas_refuse_with_a_reason() {
    let config = EngineConfig { grants_per_session: 2, mappings_per_session: 3, sessions_max: 1, ..Default::default() };
    let world = World::with(config, 64 * MIB);
    let peer = world.peer();
    let answer = world.map(peer, Range { start: 0, end: 8 * MIB });
    let refused: Vec<_> = answer.segments.iter().filter_map(|segment| segment.access.err()).collect();
    assert_eq!((grants(&answer).len(), refused), (2, vec![Reason::ImporterQuota]));
    world.map(peer, Range::new(0, 4096));
    world.map(peer, Range::new(0, 4096));
    let answer = world.map(peer, Range::new(0, 4096));
    assert_eq!((answer.mapping, refusal(&answer)), (None, Some(Reason::ImporterQuota)));
    let another = world.engine.open_session(0, std::sync::Arc::new(|| {}));
    assert_eq!(another, Err(SessionError::TooMany { limit: 1 }));
    assert_eq!(world.engine.snapshot().refusals[0].reason, "ImporterQuota");
}

#[test]
fn the_window_granted_longest_ago_makes_room() {
    let world = World::with(EngineConfig::default(), 3 * CHUNK_BYTES);
    let peer = world.peer();
    let mut first = Vec::new();
    for chunk in 0..3 {
        first.push(world.map(peer, Range::new(chunk * CHUNK_BYTES, CHUNK_BYTES)));
        world.clock.advance(Duration::from_millis(30));
    }
    // Half of the aperture at most may be asked for when others have to go.
    let range = Range::new(3 * CHUNK_BYTES, CHUNK_BYTES);
    crate::sync::lock(&world.files.sizes).insert(FILE, 16 * MIB);
    let large = world.map(peer, Range { start: 3 * CHUNK_BYTES, end: 5 * CHUNK_BYTES });
    assert_eq!(refusal(&large), Some(Reason::ApertureFull), "{large:?}");
    std::thread::scope(|scope| {
        let map = scope.spawn(|| world.map(peer, range));
        world.clock.await_sleepers(1);
        let told = world.engine.events(peer.session, 10);
        assert_eq!(told.len(), 1);
        assert_eq!((told[0].file_offset, told[0].trigger), (0, peerfs_abi::Trigger::AperturePressure.code()));
        assert!(world.engine.ack(peer.session, GrantId(told[0].grant_id)));
        assert_eq!(grants(&map.join().expect("map")).len(), 1);
    });
    assert!(world.engine.grant(grants(&first[1])[0].id).is_some());
}

#[test]
fn a_window_in_use_does_not_make_room() {
    let world = World::with(EngineConfig::default(), 2 * CHUNK_BYTES);
    let peer = world.peer();
    world.map(peer, Range { start: 0, end: 2 * CHUNK_BYTES });
    let answer = world.map(peer, Range::new(2 * CHUNK_BYTES, 4096));
    assert_eq!(refusal(&answer), Some(Reason::ApertureFull), "granted just now");
}

#[test]
fn device_events_revoke_and_refuse_until_cleared() {
    let world = World::new();
    let peer = world.peer();
    let answer = world.map(peer, Range { start: 0, end: 2 * CHUNK_BYTES });
    let base = FILE.0 << 20;
    std::thread::scope(|scope| {
        let event = DeviceEvent::MediaError { offset: base + CHUNK_BYTES + 8192, length: 512 };
        let event = scope.spawn(|| {
            let event = event;
            world.engine.device_event(ExportId::Files, &event)
        });
        world.clock.await_sleepers(1);
        world.clock.advance(Duration::from_millis(100));
        event.join().expect("event");
    });
    assert!(world.engine.grant(grants(&answer)[0].id).is_some());
    assert!(world.engine.grant(grants(&answer)[1].id).is_none());
    let bad = world.map(peer, Range::new(CHUNK_BYTES, 5 * 4096));
    let shape: Vec<_> = bad.segments.iter().map(|s| (s.range.length() / 4096, s.access.err())).collect();
    assert_eq!(shape, [(2, None), (1, Some(Reason::MediaError)), (2, None)]);
    world.engine.clear_device_events(ExportId::Files);
    std::thread::scope(|scope| {
        let event = scope.spawn(|| world.engine.device_event(ExportId::Files, &DeviceEvent::Reset));
        world.clock.await_sleepers(1);
        world.clock.advance(Duration::from_millis(100));
        event.join().expect("event");
    });
    assert_eq!(refusal(&world.map(peer, Range::new(0, 4096))), Some(Reason::DeviceResetting));
    world.assert_clean();
    world.engine.clear_device_events(ExportId::Files);
    assert_eq!(refusal(&world.map(peer, Range::new(0, 4096))), None);
}

#[test]
fn a_query_changes_nothing_and_shows_contested_chunks() {
    let world = World::new();
    let peer = world.peer();
    let request = MapRequest {
        object: FILE,
        range: Range { start: 0, end: u64::MAX },
        flags: MapFlags::QUERY,
        handle_writable: false,
        uid: 0,
        cache_probe: None,
    };
    let query = || world.engine.device_query(Asker::Context(peer.context, me()), &request, 100).expect("query");
    assert_eq!(query().decisions.len(), 1);
    assert!(world.log().is_empty() && !world.engine.is_mapped(None));
    for _ in 0..9 {
        world.engine.thrash.record(FILE, 1, crate::clock::Clock::now(&*world.clock));
    }
    let contested = query();
    let shape: Vec<_> = contested.decisions.iter().map(|d| (d.range.start / CHUNK_BYTES, d.placement)).collect();
    assert_eq!(shape[1], (1, Placement::Fallback(Reason::Busy)));
    assert_eq!((shape.len(), contested.retry_after_ms), (3, 1000));
    assert_eq!(world.map(peer, Range::new(CHUNK_BYTES, 4096)).retry_after_ms, 1000);
    world.clock.advance(Duration::from_secs(1));
    assert_eq!(query().decisions.len(), 1);
}
