use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use peerfs_abi::{Reason, Trigger};

use super::world::*;
use crate::api::*;
use crate::clock::Clock;
use crate::sync::lock;
use crate::types::*;

const READ: CpuAccess = CpuAccess::CachedRead { cpu_writers: 0 };
const READ_BESIDE_WRITER: CpuAccess = CpuAccess::CachedRead { cpu_writers: 1 };

/// Does this access end a mapping? Nobody acknowledges, and the deadline has passed at once.
fn ends(world: &World, access: CpuAccess) -> bool {
    world.engine.cpu_access(FILE, Range::new(100, 10), access);
    !world.engine.is_mapped(Some(FILE))
}

#[test]
fn the_table_of_cpu_accesses() {
    let cases = [
        (false, READ, false),
        (false, READ_BESIDE_WRITER, true),
        (false, CpuAccess::CachedWrite, true),
        (true, READ, true),
        (true, READ_BESIDE_WRITER, true),
        (true, CpuAccess::CachedWrite, true),
    ];
    for (write, access, expected) in cases {
        let world = World::with(EngineConfig { deadline: Duration::ZERO, ..Default::default() }, 64 * MIB);
        let peer = world.peer();
        match write {
            true => world.map_write(peer, Range::new(0, 4096)),
            false => world.map(peer, Range::new(0, 4096)),
        };
        world.engine.cpu_access(FILE, Range::new(CHUNK_BYTES, 10), access);
        assert!(world.engine.is_mapped(Some(FILE)), "another chunk is not concerned");
        assert_eq!(ends(&world, access), expected, "write mapping: {write}, {access:?}");
    }
}

#[test]
fn a_touch_while_pending_is_answered_at_once_and_the_map_tries_again() {
    let world = World::new();
    let peer = world.peer();
    let touches = Arc::new(AtomicU32::new(0));
    let count = touches.clone();
    world.hook_quiesce(move |engine, object| {
        if count.fetch_add(1, Ordering::SeqCst) < 2 {
            engine.cpu_access(object, Range::new(0, 1), CpuAccess::CachedWrite);
        }
    });
    assert_eq!(grants(&world.map(peer, Range::new(0, 4096))).len(), 1);
    assert_eq!(touches.load(Ordering::SeqCst), 3);
}

#[test]
fn a_range_the_cpu_keeps_touching_is_busy() {
    let world = World::new();
    let peer = world.peer();
    world.hook_quiesce(|engine, object| engine.cpu_access(object, Range::new(0, 1), CpuAccess::CachedWrite));
    let answer = world.map(peer, Range::new(0, 4096));
    assert_eq!(refusal(&answer), Some(Reason::Busy));
    world.assert_clean();
    // A reader does not keep a read mapping away, only a write mapping.
    world.hook_quiesce(|engine, object| engine.cpu_access(object, Range::new(0, 1), READ));
    assert_eq!(refusal(&world.map_write(peer, Range::new(0, 4096))), Some(Reason::Busy));
    assert_eq!(refusal(&world.map(peer, Range::new(0, 4096))), None);
}

#[test]
fn touched_between_look_up_and_activation() {
    let world = World::new();
    let peer = world.peer();
    *lock(&world.files.during_survey) = Some(Arc::new(Box::new(|engine: &crate::Engine, object| {
        engine.cpu_access(object, Range::new(0, 1), CpuAccess::CachedWrite);
    })));
    assert_eq!(refusal(&world.map_write(peer, Range::new(0, 4096))), Some(Reason::Busy));
    assert!(world.log().iter().filter(|what| *what == "open").count() == 4, "{:?}", world.log());
    world.assert_clean();
}

#[test]
fn truncation_while_pending_does_not_wait_for_the_page_cache() {
    let world = World::new();
    let peer = world.peer();
    // The page cache waits for the very request that truncates: it is made from inside quiesce.
    let guards: Arc<Mutex<Vec<crate::ClosedRange>>> = Arc::default();
    let (kept, engine) = (guards.clone(), Arc::downgrade(&world.engine));
    world.hook_quiesce(move |_, object| {
        let engine = engine.upgrade().expect("alive");
        lock(&kept).push(engine.close_range(object, Range::new(0, u64::MAX), Trigger::Truncate));
    });
    std::thread::scope(|scope| {
        let map = scope.spawn(|| world.map(peer, Range::new(0, 4096)));
        world.clock.await_sleepers(1);
        world.clock.advance(Duration::from_millis(200));
        assert_eq!(refusal(&map.join().expect("map")), Some(Reason::Busy));
    });
    assert_eq!(lock(&guards).len(), 1);
    assert!(world.log().is_empty(), "no window was opened over blocks that are being freed");
    lock(&guards).clear();
    world.assert_clean();
}

#[test]
fn truncation_while_opening_waits_for_the_window_to_go() {
    let world = World::new();
    let peer = world.peer();
    let closers: Arc<Mutex<Vec<std::thread::JoinHandle<Vec<String>>>>> = Arc::default();
    let calls = AtomicU32::new(0);
    let (engine, log, kept) = (Arc::downgrade(&world.engine), world.aperture.log.clone(), closers.clone());
    *lock(&world.files.during_survey) = Some(Arc::new(Box::new(move |_: &crate::Engine, object| {
        // The first survey is the decision; in the second the blocks are looked up for good.
        if calls.fetch_add(1, Ordering::SeqCst) != 1 {
            return;
        }
        let engine = engine.upgrade().expect("alive");
        let (log, aborted) = (log.clone(), engine.clone());
        let closer = std::thread::spawn(move || {
            let _guard = engine.close_range(object, Range::ALL, Trigger::Truncate);
            lock(&log).iter().map(|entry| entry.0.clone()).collect()
        });
        lock(&kept).push(closer);
        while !aborted.object_of(object).is_some_and(|o| lock(&o.state).is_closed(Range::ALL)) {
            std::thread::yield_now();
        }
    })));
    let answer = world.map(peer, Range::new(0, 4096));
    let closer = lock(&closers).pop().expect("closer");
    let seen = closer.join().expect("close");
    assert_eq!(seen, ["open", "cut", "valid 4096", "write-back"], "the closer saw the window come and go");
    assert_eq!(grants(&answer).len(), 1, "mapped after the range was opened again");
}

#[test]
fn a_writable_open_drops_cached_pages_or_the_mapping() {
    let world = World::new();
    let peer = world.peer();
    world.map(peer, Range::new(0, 4096));
    world.engine.writable_cached_open(FILE);
    assert!(world.engine.is_mapped(Some(FILE)));
    *lock(&world.files.refuse) = Some(Reason::PageCached);
    std::thread::scope(|scope| {
        let open = scope.spawn(|| world.engine.writable_cached_open(FILE));
        world.clock.await_sleepers(1);
        world.clock.advance(Duration::from_millis(100));
        open.join().expect("open");
    });
    world.assert_clean();
    assert_eq!(refusal(&world.map(peer, Range::new(0, 4096))), Some(Reason::PageCached));
}

#[test]
fn partial_writes_end_write_mappings_only() {
    let world = World::with(EngineConfig { deadline: Duration::ZERO, ..Default::default() }, 64 * MIB);
    let peer = world.peer();
    world.map(peer, Range::new(0, 4096));
    world.map_write(peer, Range::new(CHUNK_BYTES, 4096));
    drop(world.engine.close_to_writes(FILE, Range::ALL));
    assert_eq!(world.engine.snapshot().windows, 1);
}

#[test]
fn a_change_of_part_of_a_block_makes_every_map_under_way_start_again() {
    let world = World::new();
    let peer = world.peer();
    let calls = Arc::new(AtomicU32::new(0));
    let (count, engine) = (calls.clone(), Arc::downgrade(&world.engine));
    world.hook_quiesce(move |_, object| {
        if count.fetch_add(1, Ordering::SeqCst) == 0 {
            drop(engine.upgrade().expect("alive").close_to_writes(object, Range::new(4096, 100)));
        }
    });
    // Also one that only reads: the size it looked at may be about to change.
    let answer = world.map(peer, Range::new(0, 8192));
    assert_eq!((grants(&answer).len(), calls.load(Ordering::SeqCst)), (1, 2));
}

#[test]
fn sizes_reach_windows_in_every_state() {
    let world = World::new();
    let peer = world.peer();
    lock(&world.files.sizes).insert(FILE, 5000);
    world.map_write(peer, Range { start: 0, end: u64::MAX });
    world.engine.size_changed(FILE, 5000, 7000);
    assert_eq!(world.log().last().map(String::as_str), Some("valid 7000"));
    world.engine.size_changed(FILE, 7000, 1 << 40);
    assert_eq!(world.log().last().map(String::as_str), Some("valid 8192"));
    world.engine.close_session(peer.session);
    // While the blocks are looked up.
    let peer = world.peer();
    let calls = AtomicU32::new(0);
    *lock(&world.files.during_survey) = Some(Arc::new(Box::new(move |engine: &crate::Engine, object| {
        if calls.fetch_add(1, Ordering::SeqCst) == 1 {
            engine.size_changed(object, 5000, 6000);
        }
    })));
    world.map(peer, Range { start: 0, end: u64::MAX });
    assert_eq!(world.log().last().map(String::as_str), Some("valid 6000"));
}

#[test]
fn a_contested_chunk_falls_back_for_a_while() {
    let world = World::with(EngineConfig { deadline: Duration::ZERO, ..Default::default() }, 64 * MIB);
    let peer = world.peer();
    let mut rounds = 0;
    while refusal(&world.map_write(peer, Range::new(0, 4096))).is_none() {
        rounds += 1;
        world.engine.cpu_access(FILE, Range::new(0, 1), READ);
        world.clock.advance(Duration::from_millis(10));
    }
    assert_eq!(rounds, 9, "more than eight within a second");
    assert_eq!(world.map_write(peer, Range::new(0, 4096)).retry_after_ms, 910);
    world.clock.advance(Duration::from_millis(910));
    assert_eq!(refusal(&world.map_write(peer, Range::new(0, 4096))), None);
    assert!(world.clock.now() > Duration::from_secs(10));
}
