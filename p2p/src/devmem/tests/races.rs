//! Owners under pressure from several threads: no byte of another owner, no account off, nobody hangs.

use std::sync::atomic::{AtomicU64, Ordering};

use peerfs_abi::MapFlags;

use super::world::*;
use crate::types::*;

const OWNERS: u8 = 4;
const ROUNDS: u64 = 60;

#[test]
fn owners_that_push_each_other_out_see_their_own_bytes_only() {
    let world = World::new(4 * MIB, config(6 * MIB));
    let direct = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for mark in 1..=OWNERS {
            let (world, direct) = (&world, &direct);
            scope.spawn(move || {
                let peer = world.peer();
                for round in 0..ROUNDS {
                    direct.fetch_add(one_life(world, peer, mark, round), Ordering::Relaxed);
                }
            });
        }
    });
    let record = world.pool.record();
    println!("{} windows, {} moves out, {} in", direct.load(Ordering::Relaxed), record.moved_out, record.moved_in);
    assert!(direct.load(Ordering::Relaxed) > 0 && record.moved_out > 0);
    world.assert_empty();
}

/// Allocates, writes, maps, reads, grows and frees; answers how many windows it got.
fn one_life(world: &World, peer: Peer, mark: u8, round: u64) -> u64 {
    let bytes = (1 + round % 3) * MIB / 2 + 4096 * round;
    let Ok(view) = world.pool.allocate(peer.owner, bytes) else {
        return 0;
    };
    let all = |bytes: u64| world.pool.read(view.id, 0, bytes).expect("read");
    assert!(all(view.bytes).iter().all(|byte| *byte == 0), "bytes of somebody else");
    world.pool.write(view.id, 0, &vec![mark; view.bytes as usize]).expect("write");
    let windows = world.windows(&world.map(peer, view.id, Range::ALL, MapFlags::WRITE), true);
    for (range, window) in &windows {
        if let Some(seen) = window.load(0, range.length() as usize) {
            assert!(seen.iter().all(|byte| *byte == mark), "bytes of somebody else in a window");
        }
    }
    if let Ok(grown) = world.pool.grow(peer.owner.session, view.id, view.bytes + 4096) {
        assert!(all(grown.bytes)[view.bytes as usize..].iter().all(|byte| *byte == 0), "bytes of somebody else");
    }
    assert!(all(view.bytes).iter().all(|byte| *byte == mark));
    world.pool.free(peer.owner.session, view.id).expect("free");
    windows.len() as u64
}
