//! Parts by themselves, most of them small enough for every schedule there is.

use std::sync::Arc;

use peerfs_abi::ioctl;
use shuttle::scheduler::DfsScheduler;

use super::{BLOCK, MIB, World, explore, grants, hasty, run};
use crate::clock::{Clock, Gate, SystemClock};
use crate::engine::grant::Grant;
use crate::engine::holders::{Acks, Holders};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Mutex, lock, thread};

/// Checks a property over every schedule.
fn exhaust(property: fn()) {
    run(DfsScheduler::new(None, false), property);
}

/// A change between a waiter's look and its sleep is not missed.
#[test]
fn a_gate_wakes_everybody_who_looked_before_the_change() {
    exhaust(|| {
        let (gate, changed) = (Arc::<Gate>::default(), AtomicBool::new(false));
        let wait = || SystemClock::default().wait(&gate, None, &mut || changed.load(Ordering::SeqCst));
        thread::scope(|scope| {
            scope.spawn(wait);
            scope.spawn(|| {
                changed.store(true, Ordering::SeqCst);
                gate.notify();
            });
        });
    });
}

/// The revoker hears once, from the last holder, whoever that is.
#[test]
fn the_last_acknowledgement_alone_wakes_the_revoker() {
    explore(|| {
        let world = World::with(hasty(), 64 * MIB);
        let peers = [world.peer(), world.peer()];
        let held = peers.map(|peer| grants(&world.map(peer, BLOCK))[0].id);
        let acks = Arc::<Acks>::default();
        let holders = Mutex::new(Holders::default());
        for grant in held {
            lock(&holders).add(world.engine.grant_of(grant).expect("held"));
        }
        assert_eq!(lock(&holders).hand_over(&acks, 5, None).len(), 2);
        let acknowledge = |grant: &Grant| {
            lock(&holders).acknowledge(grant);
            // Once more changes nothing.
            lock(&holders).acknowledge(grant);
        };
        thread::scope(|scope| {
            for grant in held {
                let grant = world.engine.grant_of(grant).expect("held");
                scope.spawn(move || acknowledge(&grant));
            }
            scope.spawn(|| {
                SystemClock::default().wait(&acks.gate, None, &mut || !acks.is_empty());
                assert_eq!(acks.take(), [5]);
            });
        });
        assert!(acks.is_empty());
        peers.iter().for_each(|peer| world.engine.close_session(peer.session));
        assert_eq!(world.log(), ["open", "cut", "write-back"], "both held one window");
    });
}

/// A client that looks before it sleeps is woken for an event that comes in between.
#[test]
fn a_client_that_goes_to_sleep_misses_no_event() {
    exhaust(|| {
        let world = World::with(hasty(), 64 * MIB);
        let bell = Arc::<Gate>::default();
        let rung = bell.clone();
        let peer = world.peer_woken_by(Arc::new(move || rung.notify()));
        let session = world.engine.session_of(peer.session).expect("open");
        let event = ioctl::Event { grant_id: 1, mapping_id: 0, file_offset: 0, length: 4096, trigger: 0, deadline_ms: 0 };
        thread::scope(|scope| {
            scope.spawn(|| {
                assert!(session.push_event(event, 1));
                (session.wake)();
            });
            scope.spawn(|| {
                SystemClock::default().wait(&bell, None, &mut || world.engine.has_events(peer.session));
                assert_eq!(world.engine.events(peer.session, 8), [event]);
            });
        });
    });
}

/// Two grants never have one slot at a time, nor one slot's number after each other.
#[test]
fn a_slot_is_one_grants_and_its_number_no_other_grants() {
    exhaust(|| {
        let world = World::new();
        let peer = world.peer();
        let session = world.engine.session_of(peer.session).expect("open");
        let drawn = std::sync::Mutex::new(Vec::new());
        let draw = || {
            let slot = session.draw_slot(2).expect("two are free");
            drawn.lock().expect("one step").push((slot.number, slot.value));
            session.return_slot(slot.number);
        };
        thread::scope(|scope| {
            scope.spawn(draw);
            scope.spawn(draw);
        });
        let drawn = drawn.into_inner().expect("no panic");
        assert!(drawn[0] != drawn[1], "{drawn:?}");
    });
}
