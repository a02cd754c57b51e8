//! Pins on device memory: it does not move, and what is freed under one comes back with its end.

use std::sync::atomic::{AtomicBool, Ordering};

use peerfs_abi::MapFlags;

use super::super::*;
use super::world::*;
use crate::api::{DeviceMapOps, MapAnswer, UnmapCall};
use crate::moved::Moved;
use crate::types::*;

const PIN: MapFlags = MapFlags::PIN.union(MapFlags::WRITE);

fn worlds(main_bytes_max: u64) -> [World; 2] {
    [World::new(8 * MIB, config(main_bytes_max)), World::windowed(8 * MIB, 8 * MIB, config(main_bytes_max))]
}

fn unmap(world: &World, peer: Peer, answer: &MapAnswer) {
    let mapping = answer.mapping.expect("mapping");
    let call = UnmapCall { session: peer.owner.session, client: me(), mapping, report_only: false, moved: Moved::default() };
    world.engine.device_unmap(&call).expect("unmap");
}

fn force(world: &World, id: u64) -> u64 {
    world.engine.revoke_pins(Some(ObjectId::device_memory(id)), Range::ALL, Trigger::Administrator).cut
}

#[test]
fn pinned_memory_stays_and_others_make_way() {
    for world in worlds(16 * MIB) {
        let (owner, importer) = (world.peer(), world.peer());
        let (id, idle) = (world.allocate(owner, 4 * MIB), world.allocate(owner, 4 * MIB));
        let pins = world.windows(&world.map(importer, id, Range::new(MIB, MIB), PIN), true);
        assert_eq!(pins.len(), 1);
        let other = world.allocate(owner, 3 * MIB);
        let migrated = |id| world.pool.view(id).expect("there").migrated;
        assert_eq!([id, idle, other].map(migrated), [false, true, false], "used longest ago, but pinned");
        assert!(pins[0].1.store(10, b"through the pin"));
        assert_eq!(world.pool.read(id, MIB + 10, 15).expect("read"), b"through the pin");
        // The others stay where they are, too, so growth would need a move: it changes nothing.
        world.map(importer, other, Range::new(0, 4096), PIN);
        let record = world.pool.record();
        let grown = world.pool.grow(owner.owner.session, id, 8 * MIB);
        assert!(matches!(grown, Err(PoolError::Pinned { .. })), "{grown:?}");
        assert_eq!(world.pool.record().users, record.users);
        world.assert_balanced();
        assert_eq!((force(&world, id), force(&world, other)), (1, 1));
        assert!(!pins[0].1.is_live());
        assert_eq!(world.pool.read(id, MIB + 10, 15).expect("read"), b"through the pin");
        world.pool.grow(owner.owner.session, id, 8 * MIB).expect("all others make way");
        world.pool.close_session(owner.owner.session);
        world.assert_empty();
    }
}

#[test]
fn freed_blocks_of_a_pin_go_to_nobody_until_it_ends() {
    for forced in [true, false] {
        for world in worlds(8 * MIB) {
            let (owner, importer) = (world.peer(), world.peer());
            let id = world.allocate(owner, 4 * MIB);
            let answer = world.map(importer, id, Range::new(MIB, MIB), PIN);
            // Never handed over, it ends with its mapping.
            let pins = if forced { world.windows(&answer, true) } else { Vec::new() };
            world.pool.free(owner.owner.session, id).expect("free");
            let record = world.pool.record();
            assert_eq!((record.quarantined_bytes, record.free_bytes), (MIB, 7 * MIB));
            assert!(record.users.is_empty());
            world.assert_balanced();
            let all = world.allocate(owner, 7 * MIB);
            assert!(!world.pool.view(all).expect("there").migrated, "all that is left");
            assert!(pins.iter().all(|pin| pin.1.store(0, &[7; 4096])));
            assert!(world.pool.read(all, 0, 7 * MIB).expect("read").iter().all(|byte| *byte == 0), "nobody else's");
            match forced {
                true => assert_eq!(force(&world, id), 1),
                false => unmap(&world, importer, &answer),
            }
            assert_eq!(world.pool.record().quarantined_bytes, 0);
            let last = world.allocate(owner, MIB);
            assert_eq!(world.pool.read(last, 0, MIB).expect("read"), vec![0; MIB as usize], "zeroed first");
            world.assert_balanced();
            world.pool.close_session(owner.owner.session);
            world.assert_empty();
        }
    }
}

#[test]
fn several_pins_of_one_allocation_return_their_own() {
    for world in worlds(0) {
        let (owner, importer) = (world.peer(), world.peer());
        let id = world.allocate(owner, 8 * MIB);
        let pin = |at: u64| world.map(importer, id, Range::new(at, 8192), PIN);
        let answers = [pin(0), pin(2 * MIB - 4096), pin(5 * MIB), pin(8 * MIB - 8192)];
        world.pool.free(owner.owner.session, id).expect("free");
        for (ended, answer) in answers.iter().enumerate() {
            assert_eq!(world.pool.record().quarantined_bytes, (4 - ended as u64) * 8192);
            world.assert_balanced();
            unmap(&world, importer, answer);
        }
        world.assert_empty();
    }
}

/// Pins come and go while their memory moves and is freed.
#[test]
fn pins_race_with_moves_and_frees() {
    let world = World::new(8 * MIB, config(16 * MIB));
    let (owner, importer) = (world.peer(), world.peer());
    let stop = AtomicBool::new(false);
    let newest = AtomicU64::new(world.allocate(owner, 3 * MIB));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                let id = newest.load(Ordering::SeqCst);
                let answer = world.try_map(importer, id, Range::new(0, MIB), PIN);
                let Ok(answer) = answer else { continue };
                let pins = world.windows(&answer, true);
                let stored = pins.first().is_some_and(|pin| pin.1.store(4096, &id.to_le_bytes()));
                // What a live pin stored is in its own allocation, or in none.
                if stored && let Ok(bytes) = world.pool.read(id, 4096, 8) {
                    assert_eq!(bytes, id.to_le_bytes());
                }
                unmap(&world, importer, &answer);
                force(&world, id);
            }
        });
        for _ in 0..200 {
            let id = world.allocate(owner, 3 * MIB);
            assert_eq!(world.pool.read(id, 4096, 8).expect("read"), [0; 8]);
            let old = newest.swap(id, Ordering::SeqCst);
            let pushed = world.allocate(owner, 4 * MIB);
            world.pool.free(owner.owner.session, old).expect("free");
            world.pool.free(owner.owner.session, pushed).expect("free");
        }
        stop.store(true, Ordering::SeqCst);
    });
    world.pool.close_session(owner.owner.session);
    world.assert_empty();
}
