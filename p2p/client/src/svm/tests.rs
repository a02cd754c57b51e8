//! Places in the real address space of the test.

use std::fs::File as StdFile;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use nix::sys::memfd::{MFdFlags, memfd_create};
use peerfs_sys::{CpuMapping, Reservation};

use super::{Direction, PAGE, Placement, reserve};
use crate::Error;

/// Addresses that nothing else in a test program uses; each test has its own.
const ARENA: u64 = 0x21_0000_0000;

fn inside(low: u64, pages: u64, direction: Direction) -> Placement {
    Placement { low, high: low + pages * PAGE, alignment: PAGE, direction }
}

#[test]
fn both_directions_fill_the_limits_and_then_it_is_full() {
    for (direction, expected) in [(Direction::BottomUp, [0, 3, 6]), (Direction::TopDown, [7, 4, 1])] {
        let placement = inside(ARENA, 10, direction);
        let places: Vec<_> = (0..3).map(|_| reserve(3 * PAGE, placement).expect("room")).collect();
        let found: Vec<u64> = places.iter().map(|place| (place.address() as u64 - ARENA) / PAGE).collect();
        assert_eq!(found, expected);
        let full = reserve(3 * PAGE, placement);
        assert!(matches!(full, Err(Error::AddressSpaceFull { .. })), "{full:?}");
        let last = reserve(PAGE, placement).expect("one page is left");
        assert!(reserve(PAGE, placement).is_err());
        drop(last);
    }
    let aligned = Placement { alignment: 1 << 30, ..inside(ARENA + PAGE, 1 << 20, Direction::BottomUp) };
    assert_eq!(reserve(PAGE, aligned).expect("room").address() as u64, ARENA + (1 << 30));
}

#[test]
fn what_cannot_be_is_refused() {
    let placement = inside(ARENA, 10, Direction::BottomUp);
    assert!(reserve(0, placement).is_err() && reserve(5, placement).is_err());
    assert!(reserve(PAGE, Placement { alignment: 3 * PAGE, ..placement }).is_err());
    let nowhere = Placement { low: 1 << 62, high: u64::MAX, ..placement };
    assert!(matches!(reserve(PAGE, nowhere), Err(Error::AddressSpaceFull { .. })));
    let too_low = Placement { low: 0, high: 4096 * 8, ..placement };
    assert!(matches!(reserve(PAGE, too_low), Err(Error::AddressSpaceFull { .. })));
    let far = reserve(PAGE, Placement { direction: Direction::TopDown, ..Placement::default() }).expect("anywhere");
    assert!((far.address() as u64) < 1 << 47);
}

/// A small generator: the same numbers for the same seed.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

/// Puts a memory file of its own, full of `stamp`, where the reservation is.
fn stamped(place: Reservation, stamp: u64) -> CpuMapping {
    let file = StdFile::from(memfd_create(c"stamp", MFdFlags::MFD_CLOEXEC).expect("memfd"));
    file.set_len(place.length() as u64).expect("room");
    let mapping = CpuMapping::map_in(place, &file, 0, true).expect("it is ours");
    for at in (0..mapping.length()).step_by(PAGE as usize) {
        mapping.write(at, &stamp.to_ne_bytes()).expect("store");
    }
    mapping
}

fn assert_stamp(mapping: &CpuMapping, stamp: u64) {
    for at in (0..mapping.length()).step_by(PAGE as usize) {
        let mut word = [0; 8];
        mapping.read(at, &mut word).expect("it is mapped");
        assert_eq!(u64::from_ne_bytes(word), stamp, "somebody else's mapping is at {:#x}", mapping.address() + at);
    }
}

/// Threads map at random places among which others search: nobody ever loses a mapping.
#[test]
fn no_mapping_is_replaced_while_others_map_at_random() {
    const PAGES: u64 = 64;
    let low = ARENA + (1 << 40);
    let (done, stamps, taken_away) = (AtomicBool::new(false), AtomicU64::new(1), AtomicU64::new(0));
    let seed = std::env::var("PEERFS_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(7_u64);
    println!("seed {seed}");
    thread::scope(|scope| {
        for number in 0..2 {
            let (done, stamps, taken_away) = (&done, &stamps, &taken_away);
            scope.spawn(move || {
                let mut state = seed + number;
                while !done.load(Ordering::Relaxed) {
                    let (page, pages) = (next(&mut state) % PAGES, 1 + next(&mut state) % 6);
                    let Ok(place) = Reservation::at((low + page * PAGE) as usize, (pages * PAGE) as usize) else {
                        taken_away.fetch_add(1, Ordering::Relaxed);
                        continue;
                    };
                    let stamp = stamps.fetch_add(1, Ordering::Relaxed);
                    let mapping = stamped(place, stamp);
                    thread::yield_now();
                    assert_stamp(&mapping, stamp);
                }
            });
        }
        let searchers = [Direction::BottomUp, Direction::TopDown].map(|direction| {
            let stamps = &stamps;
            scope.spawn(move || {
                let (mut found, mut full) = (0, 0);
                while found < 2000 {
                    match reserve(4 * PAGE, inside(low, PAGES, direction)) {
                        Ok(place) => {
                            let stamp = stamps.fetch_add(1, Ordering::Relaxed);
                            let mapping = stamped(place, stamp);
                            assert_stamp(&mapping, stamp);
                            found += 1;
                        }
                        Err(Error::AddressSpaceFull { .. }) => full += 1,
                        Err(error) => panic!("{error}"),
                    }
                }
                (found, full)
            })
        });
        let counts = searchers.map(|searcher| searcher.join());
        done.store(true, Ordering::Relaxed);
        let places = taken_away.load(Ordering::Relaxed);
        println!("found and full: {counts:?}; {places} random places were taken already");
        assert!(counts.iter().all(Result::is_ok));
    });
}
