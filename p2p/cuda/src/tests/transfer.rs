//! Which bytes go which way, and that they are the file's.

use peerfs_client::{Attestation, MapFlags, Reason};
use peerfs_conformance::kit::{Random, seed};

use super::fake::{Call, FakeGpu};
use super::scene::{SIZE, Scene, content_of};
use crate::{CudaGpu, Error, GpuBuffer, OpenError, ordinal};

#[test]
fn what_is_pinned_goes_by_kernels() {
    let (scene, gpu) = (Scene::new(), FakeGpu::new());
    let mapping = scene.map(&gpu, MapFlags::empty());
    assert_eq!((mapping.registered_bytes(), mapping.unregistered().len()), (SIZE, 0));
    let moved = scene.read_all(&gpu, &mapping);
    assert_eq!((moved.by_gpu, moved.by_processor), (SIZE, Attestation::default()));
    let attested = mapping.end().expect("end");
    assert_eq!(attested, Attestation { direct_window: SIZE, ..Attestation::default() });
}

#[test]
fn kernels_write_what_is_mapped_for_writing() {
    let (scene, gpu) = (Scene::new(), FakeGpu::new());
    let mapping = scene.map(&gpu, MapFlags::WRITE);
    let mut random = Random::new(seed(2));
    let (mut expected, mut buffer) = (scene.content.clone(), GpuBuffer::new(&gpu, SIZE as usize).expect("a buffer"));
    for _ in 0..50 {
        // A piece of the file from one place goes to another.
        let length = 1 + random.below(20_000);
        let (from, to) = (random.below(SIZE - length), random.below(SIZE - length));
        assert_eq!(mapping.read(from, length, &mut buffer).expect("read").by_gpu, length);
        assert_eq!(mapping.write(to, length, &mut buffer).expect("write").by_gpu, length);
        expected.copy_within(from as usize..(from + length) as usize, to as usize);
    }
    assert!(scene.file_content() == expected, "other bytes");
}

#[test]
fn a_hole_goes_through_the_processor() {
    let hole = 409_600..614_400;
    let (scene, gpu) = (Scene::with_hole(hole.clone()), FakeGpu::new());
    let mapping = scene.map(&gpu, MapFlags::WRITE);
    let moved = scene.read_all(&gpu, &mapping);
    let fallback = Attestation { fallback: hole.end - hole.start, ..Attestation::default() };
    assert_eq!((moved.by_gpu, moved.by_processor), (SIZE - fallback.fallback, fallback));
    assert_eq!(mapping.mapping().fallback_reasons(), [(Some(Reason::Hole), fallback.fallback)]);

    let mut buffer = GpuBuffer::new(&gpu, 8192).expect("a buffer");
    assert_eq!(mapping.read(0, 8192, &mut buffer).expect("read").by_gpu, 8192);
    let moved = mapping.write(hole.start - 4096, 8192, &mut buffer).expect("write");
    assert_eq!((moved.by_gpu, moved.by_processor.fallback), (4096, 4096));
    let at = hole.start as usize;
    assert!(scene.file_content()[at - 4096..at + 4096] == scene.content[..8192], "other bytes");
}

#[test]
fn what_the_driver_refuses_goes_through_the_processor() {
    let hole = 409_600..614_400;
    let (scene, gpu) = (Scene::with_hole(hole.clone()), FakeGpu::new());
    gpu.fail("register", 1);
    let mapping = scene.map(&gpu, MapFlags::empty());
    let [(range, error)] = mapping.unregistered() else { panic!("{:?}", mapping.unregistered()) };
    assert_eq!((range.clone(), error.call), (hole.end..SIZE, "register"));
    let moved = scene.read_all(&gpu, &mapping);
    // It is pinned all the same, so the processor reads the window.
    let attested = Attestation { direct_window: SIZE - hole.end, fallback: hole.end - hole.start, direct_bar: 0 };
    assert_eq!((moved.by_gpu, moved.by_processor), (hole.start, attested));
}

#[test]
fn a_gpu_that_registers_no_read_only_memory_is_not_asked_to() {
    let (scene, gpu) = (Scene::new(), FakeGpu::without_read_only());
    let mapping = scene.map(&gpu, MapFlags::empty());
    assert_eq!((mapping.registered_bytes(), mapping.unregistered().len()), (0, 1));
    assert_eq!(scene.read_all(&gpu, &mapping).by_processor.direct_window, SIZE);
    assert!(!gpu.calls().iter().any(|call| matches!(call, Call::Register { .. })));
    drop(mapping);
    scene.await_pins(0);
    assert_eq!(scene.map(&gpu, MapFlags::WRITE).registered_bytes(), SIZE);
}

#[test]
fn the_ordinary_way_moves_the_same_bytes() {
    let (scene, gpu) = (Scene::new(), FakeGpu::new());
    let mut buffer = GpuBuffer::new(&gpu, SIZE as usize + 4096).expect("a buffer");
    assert_eq!(buffer.fill_from(&scene.file, 0, SIZE + 4096).expect("read"), SIZE);
    assert!(content_of(&mut buffer, SIZE) == scene.content, "other bytes");
}

#[test]
fn limits_are_errors() {
    let (scene, gpu) = (Scene::new(), FakeGpu::new());
    let mapping = scene.map(&gpu, MapFlags::empty());
    let mut buffer = GpuBuffer::new(&gpu, 4096).expect("a buffer");
    assert!(matches!(mapping.read(0, 4097, &mut buffer), Err(Error::TooLong { length: 4097, capacity: 4096 })));
    assert!(matches!(mapping.write(0, 4096, &mut buffer), Err(Error::Client(peerfs_client::Error::ReadOnly))));
    let outside = mapping.read(SIZE - 1, 2, &mut buffer);
    assert!(matches!(outside, Err(Error::Client(peerfs_client::Error::Range { .. }))), "{outside:?}");
}

#[test]
fn without_a_pin_nothing_is_direct() {
    let scene = Scene::new();
    let table = scene.session.query(&scene.file, .., MapFlags::empty()).expect("query");
    assert_eq!(table.refusals(), [(Reason::NotifierRequired, SIZE)]);
    // So a mapping is a pin, whatever was asked for.
    let gpu = FakeGpu::new();
    let mapping = scene.map(&gpu, MapFlags::empty());
    assert_eq!((mapping.mapping().pins().len(), scene.pins()), (1, 1));
}

#[test]
fn no_gpu_has_the_last_number() {
    // With a driver or without one.
    let answer = CudaGpu::open(u32::MAX).map(|gpu| gpu.info().clone());
    assert!(matches!(answer, Err(OpenError::NoLibrary | OpenError::NoDevice { .. })), "{answer:?}");
}

#[test]
fn names_are_numbers() {
    assert_eq!((ordinal("cuda:0"), ordinal("cuda:12")), (Some(0), Some(12)));
    for name in ["cpu", "cuda", "cuda:", "cuda:x", "cuda:00"] {
        assert_eq!(ordinal(name), None, "{name}");
    }
}
