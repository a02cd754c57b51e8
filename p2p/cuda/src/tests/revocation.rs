//! A pin that is taken back by force while its pages are registered.

use std::thread;

use peerfs_client::{File, MapFlags, Revoked};

use super::fake::{Call, FakeGpu};
use super::scene::{PATIENCE, SIZE, Scene, content_of};
use crate::{GpuBuffer, Moved};

fn revoke(scene: &Scene) -> Revoked {
    let administrator = File::open(scene.mount.path()).expect("the mount");
    administrator.revoke_mount_pins().expect("revoke")
}

/// Everything fell back, since it was revoked.
fn assert_fell_back(moved: Moved) {
    assert_eq!((moved.by_gpu, moved.by_processor.fallback), (0, SIZE));
}

#[test]
fn force_unregisters_before_the_cut() {
    // Far off: who comes before it has been acknowledged.
    let (scene, gpu) = (Scene::with_deadline_ms(30_000), FakeGpu::new());
    let mapping = scene.map(&gpu, MapFlags::WRITE);
    assert_eq!(scene.read_all(&gpu, &mapping).by_gpu, SIZE);
    let revoked = revoke(&scene);
    assert!(revoked.pins_cut == 1 && revoked.latency < scene.session.deadline(), "{revoked:?}");
    assert!(matches!(gpu.calls()[..], [.., Call::Synchronize, Call::Unregister { mapped: true, kernels: 0, .. }]));
    assert_eq!(mapping.registered_bytes(), 0);
    assert_fell_back(scene.read_all(&gpu, &mapping));
    assert_eq!(mapping.mapping().fallback_reasons(), [(None, SIZE)]);
    mapping.end().expect("end");
    scene.await_pins(0);
}

#[test]
fn a_hung_kernel_delays_force_until_the_deadline_and_counts_for_nothing() {
    let (scene, gpu) = (Scene::new(), FakeGpu::new());
    let mapping = scene.map(&gpu, MapFlags::empty());
    let (arrived, release) = gpu.hang();
    thread::scope(|scope| {
        let reader = scope.spawn(|| scene.read_all(&gpu, &mapping));
        arrived.recv_timeout(PATIENCE).expect("the kernel runs");
        let revoked = revoke(&scene);
        assert!(revoked.pins_cut == 1 && revoked.latency >= scene.session.deadline(), "{revoked:?}");
        assert_eq!(gpu.registered(), 1);
        drop(release);
        assert_fell_back(reader.join().expect("a reader"));
    });
    mapping.end().expect("end");
    assert_eq!(gpu.registered(), 0);
    scene.await_pins(0);
}

#[test]
fn what_a_hung_kernel_stores_after_the_cut_is_written_again() {
    let (scene, gpu) = (Scene::new(), FakeGpu::new());
    let mapping = scene.map(&gpu, MapFlags::WRITE);
    let mut buffer = GpuBuffer::new(&gpu, SIZE as usize).expect("a buffer");
    let pattern: Vec<u8> = scene.content.iter().map(|byte| !byte).collect();
    *buffer.memory.lock().expect("memory") = pattern.clone();
    let (arrived, release) = gpu.hang();
    thread::scope(|scope| {
        let writer = scope.spawn(|| mapping.write(0, SIZE, &mut buffer));
        arrived.recv_timeout(PATIENCE).expect("the kernel runs");
        let revoked = revoke(&scene);
        assert!(revoked.pins_cut == 1 && revoked.latency >= scene.session.deadline(), "{revoked:?}");
        drop(release);
        assert_fell_back(writer.join().expect("a writer").expect("write"));
    });
    assert!(scene.file_content() == pattern, "other bytes");
    assert!(content_of(&mut buffer, SIZE) == pattern, "the buffer has changed");
}

#[test]
fn a_pin_that_force_took_before_it_was_registered_falls_back() {
    let hole = 409_600..614_400;
    let (scene, gpu) = (Scene::with_hole(hole), FakeGpu::new());
    scene.await_no_writers(&scene.file, MapFlags::empty());
    let path = scene.mount.path();
    // Told while the first of two stretches is registered: the callback waits for that, and ends it.
    gpu.at_register(move || {
        let administrator = File::open(&path).expect("the mount");
        administrator.revoke_mount_pins().expect("revoke");
    });
    let mapping = scene.map(&gpu, MapFlags::empty());
    let moved = scene.read_all(&gpu, &mapping);
    assert_fell_back(moved);
    drop(mapping);
    assert_eq!(gpu.registered(), 0);
    scene.await_pins(0);
}
