//! Pins: how long they live, what they keep out, and what becomes of their blocks.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use peerfs_abi::{MapFlags, Reason, Trigger};
use peerfs_blockdev::{Aperture, BlockDevice, Cmb, MemDevice};
use peerfs_sys::Window;

use super::world::*;
use crate::api::*;
use crate::engine::PinQuota;
use crate::sync::lock;
use crate::types::*;

const BASE: u64 = FILE.0 << 20;

fn range(start: u64, end: u64) -> Range {
    Range { start, end }
}

fn pin(world: &World, peer: Peer, at: Range, flags: MapFlags) -> MapAnswer {
    world.map_flags(peer, FILE, at, flags | MapFlags::PIN)
}

fn take(world: &World, answer: &MapAnswer, writable: bool) -> OwnedFd {
    world.engine.take_grant(grants(answer)[0].id, me(), writable).expect("the pin's descriptor")
}

/// Lets the thread that looks for pins look once more, and waits until as many pins are left.
fn await_pins(world: &World, left: usize) {
    while world.engine.pins().len() != left {
        // Its thread may have left by now, so it is not waited for.
        world.clock.advance(Duration::from_millis(200));
        thread::yield_now();
    }
}

#[test]
fn a_pin_that_nobody_took_ends_with_its_mapping_or_session() {
    let world = World::new();
    let peer = world.peer();
    let answer = pin(&world, peer, range(0, 4 * MIB), MapFlags::empty());
    let part = grants(&answer)[0];
    assert_eq!((answer.segments.len(), part.object, part.length), (1, GrantObject::PinnedMemfd, 4 * MIB));
    assert_eq!(world.custody.windows(), 1);
    world.unmap(peer, answer.mapping.expect("mapping")).expect("unmap");
    world.assert_clean();
    pin(&world, peer, range(0, MIB), MapFlags::WRITE);
    world.engine.close_session(peer.session);
    world.assert_clean();
    assert_eq!(world.engine.pin_totals().used_bytes, 0);
}

#[test]
fn a_pin_lives_until_its_last_holder_is_gone() {
    let world = World::new();
    let peer = world.peer();
    let answer = pin(&world, peer, range(0, MIB), MapFlags::WRITE);
    let fd = take(&world, &answer, true);
    assert!(matches!(world.engine.take_grant(grants(&answer)[0].id, me(), true), Err(GrantError::Taken)));
    let copy = fd.try_clone().expect("dup");
    let memory = Window::map(&fd, MIB as usize, true).expect("map");
    world.engine.close_session(peer.session);
    drop(fd);
    world.engine.reap_pins();
    drop(copy);
    world.engine.reap_pins();
    // Only the mapping is left, and stores through it count.
    memory.write(4096, b"last").expect("store");
    assert_eq!(world.engine.pins().len(), 1);
    drop(memory);
    await_pins(&world, 0);
    world.assert_clean();
    assert_eq!(world.log(), ["open", "writable", "cut", "write-back"]);
}

#[test]
fn pinned_blocks_are_nobody_elses() {
    let world = World::new();
    let (peer, other) = (world.peer(), world.peer());
    let dynamic = world.map(other, range(0, 2 * MIB));
    assert!(dynamic.segments[0].access.is_ok());
    // The dynamic window makes way.
    let clock = world.clock.clone();
    let turner = thread::spawn(move || {
        clock.await_sleepers(1);
        clock.advance(Duration::from_secs(1));
    });
    let answer = pin(&world, peer, range(0, MIB), MapFlags::empty());
    turner.join().expect("no panic");
    assert!(answer.segments[0].access.is_ok());
    assert_eq!(refusal(&world.map(other, range(0, MIB))), Some(Reason::Busy));
    assert_eq!(refusal(&pin(&world, other, range(4096, 8192), MapFlags::empty())), Some(Reason::Busy));
    let beside = world.map(other, range(0, 2 * MIB));
    assert_eq!(beside.segments.iter().map(|s| s.access.err()).collect::<Vec<_>>(), [Some(Reason::Busy), None]);
    // Neither the CPU nor a revocation of mappings takes it back.
    world.unmap(other, beside.mapping.expect("mapping")).expect("unmap");
    world.engine.cpu_access(FILE, range(0, MIB), CpuAccess::CachedRead { cpu_writers: 0 });
    world.engine.revoke(None, Range::ALL, Trigger::Administrator);
    assert_eq!(world.engine.pins().len(), 1);
}

#[test]
fn no_handle_of_the_page_cache_lives_beside_a_pin() {
    let world = World::new();
    let peer = world.peer();
    *lock(&world.files.handles) = PinSurvey { cached_handles: 1, ..PinSurvey::default() };
    assert_eq!(refusal(&pin(&world, peer, range(0, 4096), MapFlags::WRITE)), Some(Reason::CpuWriter));
    assert!(!world.engine.must_open_direct(FILE, true));
    let read = pin(&world, peer, range(0, 4096), MapFlags::empty());
    assert!(read.segments[0].access.is_ok(), "a reader does not stand in the way of a pin that only reads");
    assert!(world.engine.must_open_direct(FILE, true) && !world.engine.must_open_direct(FILE, false));
    world.unmap(peer, read.mapping.expect("mapping")).expect("unmap");
    *lock(&world.files.handles) = PinSurvey { cached_handles: 1, cached_writers: 1, ..PinSurvey::default() };
    assert_eq!(refusal(&pin(&world, peer, range(0, 4096), MapFlags::empty())), Some(Reason::CpuWriter));
    *lock(&world.files.handles) = PinSurvey::default();
    let write = pin(&world, peer, range(0, 4096), MapFlags::WRITE);
    assert!(write.segments[0].access.is_ok());
    assert!(world.engine.must_open_direct(FILE, false));
    assert!(!world.engine.must_open_direct(ObjectId(8), true), "another file");
}

/// The handle is opened while the pin is on its way: it counts, looks, and becomes a direct one; the pin sees it and is refused.
#[test]
fn an_open_that_races_a_pin_never_wins_beside_it() {
    let world = World::new();
    let peer = world.peer();
    world.hook_quiesce(|engine, object| {
        assert!(engine.must_open_direct(object, true), "published before the handles are counted")
    });
    let answer = pin(&world, peer, range(0, 4096), MapFlags::WRITE);
    assert!(answer.segments[0].access.is_ok());
}

#[test]
fn a_closed_range_aborts_a_pin_on_its_way_and_waits_for_none_that_lives() {
    let world = World::new();
    let peer = world.peer();
    world.hook_quiesce(|engine, object| {
        let engine = engine.pins.engine.upgrade().expect("engine");
        drop(engine.close_range(object, Range::ALL, Trigger::Truncate));
    });
    let answer = pin(&world, peer, range(0, MIB), MapFlags::empty());
    assert_eq!(refusal(&answer), Some(Reason::Busy));
    *lock(&world.files.during_quiesce) = None;
    let answer = pin(&world, peer, range(0, MIB), MapFlags::empty());
    assert!(answer.segments[0].access.is_ok());
    // On the same thread, with the clock at rest: it cannot have waited.
    drop(world.engine.close_range(FILE, Range::ALL, Trigger::Truncate));
    assert_eq!(world.engine.pins()[0].state, "live");
}

#[test]
fn given_up_blocks_stay_out_of_reuse_until_the_end() {
    let world = World::new();
    let peer = world.peer();
    let answer = pin(&world, peer, range(0, MIB), MapFlags::empty());
    let fd = take(&world, &answer, false);
    let freed = [range(BASE + MIB / 2, BASE + 2 * MIB), range(0, 4096)];
    assert_eq!(world.engine.orphan_pinned(FILE, &freed), [range(BASE + MIB / 2, BASE + MIB)]);
    assert!(world.engine.orphan_pinned(ObjectId(8), &freed).is_empty(), "another file's");
    assert_eq!(world.engine.pins()[0].state, "orphaned");
    assert!(world.log().contains(&format!("disown {}..{}", MIB / 2, MIB)));
    // The file has other blocks there by now: they may be mapped, what is still pinned may not.
    let other = world.peer();
    let beside = world.map(other, range(0, MIB));
    assert_eq!(beside.segments.iter().map(|s| s.access.err()).collect::<Vec<_>>(), [Some(Reason::Busy), None]);
    assert!(lock(&world.files.released).is_empty());
    drop(fd);
    world.engine.reap_pins();
    assert_eq!(*lock(&world.files.released), [range(BASE + MIB / 2, BASE + MIB)]);
}

#[test]
fn quotas_bound_what_is_pinned() {
    let config =
        EngineConfig { pin_quota: PinQuota::Bytes(3 * MIB), pin_quota_user: PinQuota::Bytes(2 * MIB), ..EngineConfig::default() };
    let world = World::with(config, 64 * MIB);
    let peer = world.peer();
    let answer = pin(&world, peer, range(0, 4 * MIB), MapFlags::empty());
    let shape: Vec<_> = answer.segments.iter().map(|s| (s.range, s.access.err())).collect();
    assert_eq!(shape, [(range(0, 2 * MIB), None), (range(2 * MIB, 4 * MIB), Some(Reason::PinQuota))]);
    assert_eq!(refusal(&pin(&world, peer, range(2 * MIB, 3 * MIB), MapFlags::empty())), Some(Reason::PinQuota));
    world.unmap(peer, answer.mapping.expect("mapping")).expect("unmap");
    let again = pin(&world, peer, range(2 * MIB, 4 * MIB), MapFlags::empty());
    assert!(again.segments[0].access.is_ok(), "the quota came back");
    assert_eq!(world.engine.pin_totals().used_bytes, 2 * MIB);
}

#[test]
fn a_forced_revocation_tells_waits_and_cuts() {
    let world = World::new();
    let peer = world.peer();
    let answer = pin(&world, peer, range(0, MIB), MapFlags::WRITE);
    let fd = take(&world, &answer, true);
    let memory = Window::map(&fd, MIB as usize, true).expect("map");
    let (engine, clock) = (world.engine.clone(), world.clock.clone());
    let forced = thread::spawn(move || engine.revoke_pins(Some(FILE), Range::ALL, Trigger::Administrator));
    // The pins' own thread and the one that waits for the importer.
    clock.await_sleepers(2);
    assert_eq!(world.engine.events(peer.session, 10).len(), 1);
    assert!(memory.read(0, &mut [0; 8]).is_ok(), "not before the deadline");
    clock.advance(Duration::from_millis(100));
    let report = forced.join().expect("no panic");
    assert_eq!((report.cut, report.detached, report.latency), (1, 0, Duration::from_millis(100)));
    assert!(memory.read(0, &mut [0; 8]).is_err());
    world.assert_clean();
    assert!(world.engine.pins().is_empty());
}

#[test]
fn unmounting_cuts_pins() {
    let world = World::new();
    let peer = world.peer();
    let answer = pin(&world, peer, range(0, MIB), MapFlags::empty());
    let fd = take(&world, &answer, false);
    let memory = Window::map(&fd, MIB as usize, false).expect("map");
    world.engine.close_session(peer.session);
    world.engine.shut_down().expect("nothing to write back");
    assert!(memory.read(0, &mut [0; 8]).is_err());
    world.assert_clean();
}

/// With a real aperture: a pin's memory keeps what the device was given, and a kernel without udmabuf makes it a memfd.
#[test]
fn on_a_real_aperture_the_last_store_reaches_the_device() {
    let device = Arc::new(MemDevice::new(64 * MIB).expect("device"));
    let cmb = Arc::new(Cmb::new(device.clone(), device.engine().clone(), 16 * MIB));
    let config = EngineConfig { dmabuf_pins: true, ..EngineConfig::default() };
    let world = World::on(config, cmb.clone());
    let peer = world.peer();
    let answer = pin(&world, peer, range(0, MIB), MapFlags::WRITE);
    let form = grants(&answer)[0].object;
    assert_eq!(form == GrantObject::PinnedDmabuf, peerfs_sys::has_udmabuf());
    let fd = take(&world, &answer, true);
    let memory = Window::map(&fd, MIB as usize, true).expect("map");
    drop(fd);
    memory.write(0, &[0x5A; 8192]).expect("store");
    // The file gives the second block up: what is stored there stays with the pin.
    assert_eq!(world.engine.orphan_pinned(FILE, &[range(BASE + 4096, BASE + 8192)]).len(), 1);
    world.engine.size_changed(FILE, 8 * MIB, 4096);
    let mut back = [0; 8192];
    memory.read(0, &mut back).expect("load");
    assert_eq!(back, [0x5A; 8192]);
    world.engine.close_session(peer.session);
    drop(memory);
    world.engine.reap_pins();
    assert!(world.engine.pins().is_empty());
    assert_eq!(Aperture::info(&*cmb).used_bytes, 0);
    let read = |offset| {
        let io = peerfs_blockdev::Io::Read { offset, buf: device.buffer(4096) };
        device.submit(io).wait().expect("read").expect("a buffer")[0]
    };
    assert_eq!((read(BASE), read(BASE + 4096)), (0x5A, 0));
}
