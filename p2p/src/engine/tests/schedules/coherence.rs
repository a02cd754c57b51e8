//! Maps and the CPU's page cache.

use peerfs_abi::MapFlags;

use super::aperture::WatchedAperture;
use super::ending::assert_nothing_left;
use super::page_cache::{PAGE, PageCache};
use super::{FILE, MIB, World, explore, grants, hasty};
use crate::engine::tests::world::Peer;
use crate::sync::{lock, thread};

fn map(world: &World, cache: &PageCache, peer: Peer, flags: MapFlags) {
    let answer = world.map_flags(peer, FILE, PAGE, flags);
    cache.assert_coherent(world);
    assert_eq!(grants(&answer).len(), 1, "{answer:?}");
}

#[test]
fn what_a_device_may_write_is_not_cached() {
    explore(|| {
        let aperture = WatchedAperture::new(64 * MIB);
        let world = World::on(hasty(), aperture.clone());
        let cache = PageCache::of(&world);
        let peer = world.peer();
        thread::scope(|scope| {
            scope.spawn(|| map(&world, &cache, peer, MapFlags::WRITE));
            scope.spawn(|| cache.read(&world));
            scope.spawn(|| cache.write(&world));
        });
        cache.assert_coherent(&world);
        world.engine.close_session(peer.session);
        assert_nothing_left(&world, &aperture, &[]);
    });
}

#[test]
fn what_a_device_reads_is_not_cached_beside_a_writable_handle() {
    explore(|| {
        let aperture = WatchedAperture::new(64 * MIB);
        let world = World::on(hasty(), aperture.clone());
        let cache = PageCache::of(&world);
        let peer = world.peer();
        thread::scope(|scope| {
            scope.spawn(|| map(&world, &cache, peer, MapFlags::empty()));
            scope.spawn(|| cache.read(&world));
            scope.spawn(|| {
                cache.open_writable(&world);
                cache.read(&world);
            });
        });
        cache.assert_coherent(&world);
        world.engine.close_session(peer.session);
        assert_nothing_left(&world, &aperture, &[]);
    });
}

/// A reader who shares a window, a writer who wants it, and the CPU: the window changes hands, and no page stays.
#[test]
fn windows_that_change_hands_stay_coherent() {
    explore(|| {
        let aperture = WatchedAperture::new(64 * MIB);
        let world = World::on(hasty(), aperture.clone());
        let cache = PageCache::of(&world);
        let (reader, writer) = (world.peer(), world.peer());
        thread::scope(|scope| {
            scope.spawn(|| map(&world, &cache, reader, MapFlags::empty()));
            scope.spawn(|| map(&world, &cache, writer, MapFlags::WRITE));
            scope.spawn(|| {
                cache.read(&world);
                cache.open_writable(&world);
            });
        });
        cache.assert_coherent(&world);
        world.engine.close_session(reader.session);
        world.engine.close_session(writer.session);
        assert_nothing_left(&world, &aperture, &[]);
    });
}

/// The end of the file that a window knows is the last one that was set, however far its map had come then.
#[test]
fn a_window_knows_the_size_that_was_set_last() {
    const GROWN: u64 = 2000;
    explore(|| {
        let aperture = WatchedAperture::new(64 * MIB);
        let world = World::on(hasty(), aperture.clone());
        lock(&world.files.sizes).insert(FILE, 1000);
        let peer = world.peer();
        thread::scope(|scope| {
            scope.spawn(|| world.map_write(peer, PAGE));
            scope.spawn(|| {
                lock(&world.files.sizes).insert(FILE, GROWN);
                world.engine.size_changed(FILE, 1000, GROWN);
            });
        });
        let live = aperture.live();
        assert_eq!(live.iter().map(|window| window.valid_length()).collect::<Vec<_>>(), [GROWN]);
        world.engine.close_session(peer.session);
        assert_nothing_left(&world, &aperture, &[]);
    });
}
