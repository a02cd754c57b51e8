//! A pin lives while the driver holds its pages, and ends after that, whatever fails.

use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use peerfs_client::{MapFlags, PinKind};

use super::fake::{Call, FakeGpu};
use super::scene::{PATIENCE, SIZE, Scene};
use crate::{Error, GpuBuffer, GpuMapping};

/// The end of every registration: nothing runs any more, and the memory is there still.
fn assert_ends_in_order(calls: &[Call], registrations: usize) {
    let ends = calls.iter().enumerate().filter(|(_, call)| matches!(call, Call::Unregister { .. }));
    let ends: Vec<(usize, &Call)> = ends.collect();
    assert_eq!(ends.len(), registrations, "{calls:?}");
    for (index, call) in ends {
        assert!(matches!(call, Call::Unregister { mapped: true, kernels: 0, .. }), "{calls:?}");
        assert_eq!(calls[index - 1], Call::Synchronize, "{calls:?}");
    }
}

#[test]
fn dropping_waits_unregisters_and_ends_the_pin() {
    let (scene, gpu) = (Scene::new(), FakeGpu::new());
    let mapping = scene.map(&gpu, MapFlags::WRITE);
    assert_eq!((gpu.registered(), scene.pins()), (1, 1));
    let Call::Register { address, length, writable } = gpu.calls()[0] else { panic!("{:?}", gpu.calls()) };
    assert_eq!((length as u64, writable), (SIZE.next_multiple_of(4096), true));
    drop(mapping);
    assert_ends_in_order(&gpu.calls(), 1);
    assert!(matches!(gpu.calls().last(), Some(Call::Unregister { address: at, .. }) if *at == address));
    scene.await_pins(0);
}

#[test]
fn a_registration_keeps_a_pin_whose_mapping_has_ended() {
    let (scene, gpu) = (Scene::new(), FakeGpu::new());
    let mapping = scene.map(&gpu, MapFlags::empty());
    assert_eq!(mapping.mapping().pins()[0].kind, PinKind::Memfd);
    mapping.mapping().end().expect("end");
    scene.await_look_at_pins();
    assert_eq!((gpu.registered(), scene.pins()), (1, 1));
    drop(mapping);
    assert_ends_in_order(&gpu.calls(), 1);
    scene.await_pins(0);
}

#[test]
fn a_driver_that_does_not_let_go_keeps_the_pin() {
    let (scene, gpu) = (Scene::new(), FakeGpu::new());
    let mapping = scene.map(&gpu, MapFlags::WRITE);
    gpu.fail("unregister", 0);
    let ended = mapping.end();
    assert!(matches!(&ended, Err(Error::Gpu(error)) if error.call == "unregister"), "{ended:?}");
    scene.await_look_at_pins();
    assert_eq!(scene.pins(), 1);
}

#[test]
fn a_kernel_that_fails_leaves_nothing_registered() {
    let hole = 409_600..614_400;
    let (scene, gpu) = (Scene::with_hole(hole), FakeGpu::new());
    let mapping = scene.map(&gpu, MapFlags::empty());
    let mut buffer = GpuBuffer::new(&gpu, SIZE as usize).expect("a buffer");
    for call in ["load", "synchronize"] {
        // The second stretch's.
        gpu.fail(call, 1);
        let failed = mapping.read(0, SIZE, &mut buffer);
        assert!(matches!(&failed, Err(Error::Gpu(error)) if error.call == call), "{failed:?}");
    }
    drop(mapping);
    assert_ends_in_order(&gpu.calls(), 2);
    scene.await_pins(0);
}

#[test]
fn a_stream_that_failed_is_unregistered_nevertheless() {
    let (scene, gpu) = (Scene::new(), FakeGpu::new());
    let mapping = scene.map(&gpu, MapFlags::empty());
    gpu.fail("synchronize", 0);
    let ended = mapping.end();
    assert!(matches!(&ended, Err(Error::Gpu(error)) if error.call == "synchronize"), "{ended:?}");
    assert_eq!(gpu.registered(), 0);
    scene.await_pins(0);
}

#[test]
fn a_failure_between_two_registrations_unwinds() {
    let hole = 409_600..614_400;
    let mut scene = Scene::with_hole(hole);
    let (gpu, server) = (FakeGpu::new(), scene.mount.server_pid().expect("a server"));
    scene.await_no_writers(&scene.file, MapFlags::empty());
    // The server dies after the first of two registrations; the guardian tells, as another mapping of the session shows.
    let other = scene.session.map(&scene.other(), .., MapFlags::PIN).expect("map");
    let guard = other.access(0..4096).expect("direct");
    gpu.at_register(move || {
        kill(Pid::from_raw(server), Signal::SIGKILL).expect("kill");
        let start = Instant::now();
        while guard.still_valid() {
            assert!(start.elapsed() < PATIENCE, "the guardian tells nobody");
            std::thread::yield_now();
        }
    });
    let answer = GpuMapping::new(&gpu, &scene.session, &scene.file, .., MapFlags::empty()).map(drop);
    assert!(matches!(answer, Err(Error::Client(peerfs_client::Error::ServerGone))), "{answer:?}");
    assert_ends_in_order(&gpu.calls(), 1);
    drop(other);
    scene.mount.umount().expect("take the dead mount off");
}
