//! Pins: who may open the file beside one, and who ends it.

use peerfs_abi::{MapFlags, Trigger};

use super::aperture::WatchedAperture;
use super::ending::assert_nothing_left;
use super::{BLOCK, FILE, MIB, World, explore, grants, hasty};
use crate::engine::tests::world::me;
use crate::sync::{lock, thread};
use crate::types::Range;

const DEVICE_BLOCK: Range = Range { start: FILE.0 << 20, end: (FILE.0 << 20) + 4096 };

/// An open through the page cache and a pin that writes: one of them finds the other.
#[test]
fn an_open_and_a_pin_do_not_both_win() {
    explore(|| {
        let aperture = WatchedAperture::new(64 * MIB);
        let world = World::on(hasty(), aperture.clone());
        let peer = world.peer();
        let open = || {
            lock(&world.files.handles).cached_handles += 1;
            let direct = world.engine.must_open_direct(FILE, false);
            if direct {
                lock(&world.files.handles).cached_handles -= 1;
            }
        };
        thread::scope(|scope| {
            scope.spawn(|| world.map_flags(peer, FILE, BLOCK, MapFlags::PIN | MapFlags::WRITE));
            scope.spawn(open);
        });
        let (pins, handles) = (world.engine.pins().len(), lock(&world.files.handles).cached_handles);
        assert!(pins == 0 || handles == 0, "{pins} pins beside {handles} cached handles");
        world.engine.close_session(peer.session);
        assert_nothing_left(&world, &aperture, &[]);
    });
}

/// Its last holder goes, an administrator takes it back and the file gives its blocks up, all at once: the pin ends
/// once, and what it kept is given back once, if and only if it was told to keep it.
#[test]
fn a_pin_gives_back_once_what_it_kept() {
    explore(|| {
        let aperture = WatchedAperture::new(64 * MIB);
        let world = World::on(hasty(), aperture.clone());
        let peer = world.peer();
        let answer = world.map_flags(peer, FILE, BLOCK, MapFlags::PIN | MapFlags::WRITE);
        let memory = world.engine.take_grant(grants(&answer)[0].id, me(), true).expect("the pin's memory");
        let kept = std::sync::Mutex::new(Vec::new());
        thread::scope(|scope| {
            scope.spawn(|| {
                drop(memory);
                world.engine.reap_pins();
            });
            scope.spawn(|| world.engine.revoke_pins(Some(FILE), Range::ALL, Trigger::Administrator));
            scope.spawn(|| *kept.lock().expect("one step") = world.engine.orphan_pinned(FILE, &[DEVICE_BLOCK]));
        });
        let (kept, released) = (kept.into_inner().expect("no panic"), lock(&world.files.released).clone());
        assert_eq!(kept, released);
        assert_nothing_left(&world, &aperture, &[peer]);
    });
}

/// A pin that nobody was handed ends with its mapping, also where that goes before the pin is complete.
#[test]
fn a_pin_of_a_session_that_ends_leaves_nothing() {
    explore(|| {
        let aperture = WatchedAperture::new(64 * MIB);
        let world = World::on(hasty(), aperture.clone());
        let peer = world.peer();
        thread::scope(|scope| {
            scope.spawn(|| world.map_flags(peer, FILE, BLOCK, MapFlags::PIN | MapFlags::WRITE));
            scope.spawn(|| world.engine.close_session(peer.session));
            scope.spawn(|| world.engine.revoke_pins(None, Range::ALL, Trigger::Administrator));
        });
        assert_nothing_left(&world, &aperture, &[]);
    });
}

/// A window that the device would not take keeps the blocks that its file gave up: whoever writes it back at last gives
/// them back, once.
#[test]
fn blocks_of_a_pin_wait_for_a_write_back_that_failed() {
    explore(|| {
        let aperture = WatchedAperture::new(64 * MIB);
        let world = World::on(hasty(), aperture.clone());
        let peer = world.peer();
        world.map_flags(peer, FILE, BLOCK, MapFlags::PIN | MapFlags::WRITE);
        let kept = world.engine.orphan_pinned(FILE, &[DEVICE_BLOCK]);
        aperture.refuse_write_back(true);
        thread::scope(|scope| {
            scope.spawn(|| world.engine.close_session(peer.session));
            // An error where the device does not work yet.
            scope.spawn(|| world.engine.flush_object(FILE).ok());
            scope.spawn(|| {
                aperture.refuse_write_back(false);
                world.engine.flush_object(FILE).expect("the device works again");
            });
        });
        world.engine.flush_object(FILE).expect("the device works");
        assert_eq!(*lock(&world.files.released), kept);
        assert_nothing_left(&world, &aperture, &[]);
    });
}

/// A pin, a dynamic map of the same block and a closer: never two windows over it, and none while it is closed.
#[test]
fn a_pin_makes_dynamic_windows_go_and_waits_for_closers() {
    explore(|| {
        let aperture = WatchedAperture::new(64 * MIB);
        let world = World::on(hasty(), aperture.clone());
        let (pinner, other) = (world.peer(), world.peer());
        thread::scope(|scope| {
            scope.spawn(|| world.map_flags(pinner, FILE, BLOCK, MapFlags::PIN));
            scope.spawn(|| world.map(other, BLOCK));
            scope.spawn(|| {
                let guard = world.engine.close_range(FILE, BLOCK, Trigger::Truncate);
                // A pin that is there already stays: it is asked for its blocks instead.
                assert!(world.engine.is_pinned(FILE) || aperture.live().is_empty(), "a window lives in a closed range");
                drop(guard);
            });
        });
        assert_eq!(world.engine.pins().len(), 1);
        world.engine.close_session(pinner.session);
        world.engine.close_session(other.session);
        assert_nothing_left(&world, &aperture, &[]);
    });
}
