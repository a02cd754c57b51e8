//! Allocation, limits and moves, without importers.

use nix::errno::Errno;

use super::super::*;
use super::world::*;

#[test]
fn memory_is_whole_blocks_zeroed_and_returned() {
    let world = World::new(8 * MIB, config(0));
    let peer = world.peer();
    let first = world.pool.allocate(peer.owner, 5000).expect("room");
    assert_eq!((first.bytes, first.migrated), (8192, false));
    assert_eq!(world.pool.write(first.id, 0, &[0xAA; 8192]).expect("write"), 8192);
    assert_eq!(world.pool.write(first.id, 8000, &[1; 4096]).expect("cut off at the end"), 192);
    assert!(matches!(world.pool.write(first.id, 8192, &[1]), Err(PoolError::BeyondEnd { .. })));
    assert_eq!(world.pool.read(first.id, 7999, 4096).expect("read"), [&[0xAA][..], &[1; 192]].concat());
    assert!(world.pool.read(first.id, 1 << 40, 1).expect("beyond the end").is_empty());
    world.pool.free(peer.owner.session, first.id).expect("free");
    let whole = world.allocate(peer, 8 * MIB);
    assert!(world.pool.read(whole, 0, 8 * MIB).expect("read").iter().all(|byte| *byte == 0), "nothing of the one before");
    assert!(matches!(world.pool.read(first.id, 0, 1), Err(PoolError::Gone { id }) if id == first.id));
    world.pool.close_session(peer.owner.session);
    world.assert_empty();
}

#[test]
fn impossible_requests_say_why() {
    let world = World::new(2 * MIB, config(0));
    let (peer, other) = (world.peer(), world.peer());
    let errno = |bytes| world.pool.allocate(peer.owner, bytes).map(|_| ()).map_err(|error| Errno::from_raw(error.errno()));
    assert_eq!(errno(0), Err(Errno::EINVAL));
    assert_eq!(errno(u64::MAX), Err(Errno::EINVAL));
    assert_eq!(errno(3 * MIB), Err(Errno::EFBIG));
    let id = world.allocate(peer, 2 * MIB);
    assert_eq!(errno(4096), Err(Errno::ENOMEM), "no room, and no main memory to move to");
    let (theirs, ours) = (other.owner.session, peer.owner.session);
    assert!(matches!(world.pool.free(theirs, id), Err(PoolError::NotOwner { .. })));
    assert!(matches!(world.pool.grow(theirs, id, 2 * MIB), Err(PoolError::NotOwner { .. })));
    assert!(matches!(world.pool.grow(ours, id, 4096), Err(PoolError::Shrinks { .. })));
    world.assert_balanced();
    world.pool.free(ours, id).expect("free");
    assert!(matches!(world.pool.free(ours, id), Err(PoolError::Gone { .. })));
    world.assert_empty();
}

#[test]
fn users_and_processes_have_limits() {
    let limits = PoolConfig { user_bytes_max: 4 * MIB, process_bytes_max: 3 * MIB, user_allocations_max: 3, ..config(0) };
    let world = World::new(16 * MIB, limits);
    let owner = |tgid, uid| Owner { client: Client { tgid, uid }, ..world.peer().owner };
    let (a, b, stranger) = (owner(10, 1), owner(11, 1), owner(12, 2));
    let first = world.pool.allocate(a, 3 * MIB).expect("within limits");
    assert!(matches!(world.pool.allocate(a, 4096), Err(PoolError::ProcessLimit { tgid: 10, .. })));
    assert!(matches!(world.pool.allocate(b, 2 * MIB), Err(PoolError::UserLimit { uid: 1, .. })));
    let second = world.pool.allocate(b, MIB / 2).expect("within limits");
    assert!(matches!(world.pool.grow(b.session, second.id, 2 * MIB), Err(PoolError::UserLimit { .. })));
    world.pool.grow(b.session, second.id, MIB - 4096).expect("within limits");
    world.pool.allocate(b, 4096).expect("within limits");
    world.pool.free(b.session, second.id).expect("free");
    world.pool.allocate(b, 4096).expect("within limits");
    assert!(matches!(world.pool.allocate(b, 4096), Err(PoolError::TooMany { uid: 1, limit: 3 })));
    world.pool.allocate(stranger, 3 * MIB).expect("another user's account");
    world.assert_balanced();
    world.pool.free(a.session, first.id).expect("free");
    world.pool.allocate(a, 3 * MIB).expect("given back");
    world.assert_balanced();
}

#[test]
fn the_least_recently_used_moves_and_keeps_its_bytes() {
    let world = World::new(6 * MIB, config(4 * MIB));
    let peer = world.peer();
    let ids: Vec<u64> = (0..3).map(|_| world.allocate(peer, 2 * MIB)).collect();
    for id in &ids {
        world.pool.write(*id, MIB, &[*id as u8 + 1; 5000]).expect("write");
    }
    world.pool.read(ids[0], 0, 1).expect("used last");
    let new = world.allocate(peer, 2 * MIB);
    let migrated = |id: u64| world.pool.view(id).expect("there").migrated;
    assert_eq!(ids.iter().map(|id| migrated(*id)).collect::<Vec<_>>(), [false, true, false]);
    assert!(!migrated(new));
    world.pool.write(ids[1], MIB - 1, &[9, 9]).expect("write in main memory");
    assert_eq!(world.pool.read(ids[1], MIB - 1, 3).expect("read"), [9, 9, ids[1] as u8 + 1]);
    world.pool.grow(peer.owner.session, ids[1], 2 * MIB + 4096).expect("grows in main memory");
    assert_eq!(world.pool.record().main_bytes_used, 2 * MIB + 4096);
    world.assert_balanced();
    // Main memory is nearly used up: nobody can make way, and the new one finds no room anywhere.
    assert!(matches!(world.pool.allocate(peer.owner, 2 * MIB), Err(PoolError::Full { .. })));
    let small = world.pool.allocate(peer.owner, MIB).expect("begins in main memory");
    assert!(small.migrated);
    world.assert_balanced();
    world.pool.close_session(peer.owner.session);
    world.assert_empty();
}

#[test]
fn growing_in_place_or_by_a_move() {
    let world = World::new(4 * MIB, config(8 * MIB));
    let peer = world.peer();
    let session = peer.owner.session;
    let id = world.allocate(peer, MIB);
    world.pool.write(id, MIB - 4096, &[3; 4096]).expect("write");
    let grown = world.pool.grow(session, id, 3 * MIB).expect("room");
    assert_eq!((grown.bytes, grown.migrated), (3 * MIB, false));
    let other = world.allocate(peer, MIB);
    world.pool.grow(session, id, 4 * MIB).expect("the other makes way");
    assert!(world.pool.view(other).expect("there").migrated);
    let bytes = world.pool.read(id, 0, 4 * MIB).expect("read");
    assert!(bytes[..MIB as usize - 4096].iter().chain(&bytes[MIB as usize..]).all(|byte| *byte == 0));
    assert!(bytes[MIB as usize - 4096..MIB as usize].iter().all(|byte| *byte == 3));
    assert!(matches!(world.pool.grow(session, id, 5 * MIB), Err(PoolError::TooLarge { .. })));
    world.assert_balanced();
}

#[test]
fn growing_by_nothing_and_offsets_out_of_range_are_harmless() {
    let world = World::new(4 * MIB, config(0));
    let peer = world.peer();
    let session = peer.owner.session;
    let id = world.allocate(peer, MIB);
    let gap = world.allocate(peer, MIB);
    let rest = world.allocate(peer, 4096);
    world.pool.free(session, gap).expect("free");
    for _ in 0..3 {
        assert_eq!(world.pool.grow(session, id, MIB).expect("nothing to do").bytes, MIB);
        let hole = world.allocate(peer, 4096);
        assert_eq!(world.pool.grow(session, id, MIB).expect("nothing to do").bytes, MIB);
        world.pool.free(session, hole).expect("free");
    }
    assert_eq!(world.pool.record().allocations[0].pieces, 1);
    for offset in [MIB, 1 << 63, u64::MAX - 1, u64::MAX] {
        assert!(world.pool.read(id, offset, 4096).expect("nothing").is_empty());
        assert!(matches!(world.pool.write(id, offset, b"x"), Err(PoolError::BeyondEnd { .. })));
        assert_eq!(world.pool.write(id, offset, b"").expect("nothing"), 0);
    }
    world.pool.free(session, rest).expect("free");
    world.pool.free(session, id).expect("free");
    world.assert_empty();
}
