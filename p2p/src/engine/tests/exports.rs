//! Two exporters under one engine: shared contexts and ledger, separate devices.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use peerfs_abi::{MapFlags, Reason};
use peerfs_blockdev::{DeviceEvent, MemDevice};

use super::world::*;
use crate::api::*;
use crate::exporter::Exporter;
use crate::types::*;

/// The fake exporter puts it at the same device offset as [`FILE`], but on another device.
const MEMORY: ObjectId = ObjectId((1 << 62) | FILE.0);

struct Both {
    world: World,
    memory: Arc<Files>,
    aperture: Arc<FakeAperture>,
}

fn both(memory_aperture_bytes: u64) -> Both {
    let config = EngineConfig { deadline: Duration::ZERO, evict_idle: Duration::ZERO, ..Default::default() };
    let world = World::with(config, 4 * MIB);
    let memory = Arc::new(Files::default());
    crate::sync::lock(&memory.sizes).insert(MEMORY, 8 * MIB);
    let aperture = Arc::new(FakeAperture::new(memory_aperture_bytes));
    let exporter: Arc<dyn Exporter> = memory.clone();
    let device = MemDevice::new(8 * MIB).expect("device");
    world.engine.attach_device_memory(Arc::downgrade(&exporter), Some(aperture.clone()), &device).expect("thread");
    Both { world, memory, aperture }
}

#[test]
fn one_context_maps_objects_of_both() {
    let Both { world, memory, aperture } = both(64 * MIB);
    let peer = world.peer();
    let file = world.map(peer, Range::new(0, 4096));
    let device_memory = world.map_flags(peer, MEMORY, Range::new(0, 8 * MIB), MapFlags::WRITE);
    assert_eq!((grants(&file).len(), grants(&device_memory).len()), (1, 4));
    assert_eq!(aperture.used.load(Ordering::SeqCst), 8 * MIB, "windows of its own aperture");
    assert_eq!(world.aperture.used.load(Ordering::SeqCst), 4096);
    assert_eq!(memory.write_grants.load(Ordering::SeqCst), 4);
    let snapshot = world.engine.snapshot();
    assert_eq!((snapshot.windows, snapshot.mappings.len(), snapshot.contexts.len()), (5, 2, 1));
    for answer in [file, device_memory] {
        world.unmap(peer, answer.mapping.expect("mapping")).expect("unmap");
    }
    assert_eq!(aperture.used.load(Ordering::SeqCst), 0);
    world.assert_clean();
}

#[test]
fn an_event_of_one_device_leaves_the_other_alone() {
    let Both { world, memory: _exporter, .. } = both(64 * MIB);
    let peer = world.peer();
    let map = |object| world.map_flags(peer, object, Range::new(0, 4096), MapFlags::empty());
    let (file, memory) = (map(FILE), map(MEMORY));
    let bad = DeviceEvent::MediaError { offset: FILE.0 << 20, length: 1 };
    world.engine.device_event(ExportId::DeviceMemory, &bad);
    assert!(world.engine.grant(grants(&file)[0].id).is_some());
    assert!(world.engine.grant(grants(&memory)[0].id).is_none());
    assert_eq!(refusal(&map(MEMORY)), Some(Reason::MediaError));
    world.engine.clear_device_events(ExportId::DeviceMemory);
    let memory = map(MEMORY);
    world.engine.device_event(ExportId::Files, &DeviceEvent::Reset);
    assert!(world.engine.grant(grants(&file)[0].id).is_none());
    assert!(world.engine.grant(grants(&memory)[0].id).is_some());
    assert_eq!(refusal(&map(FILE)), Some(Reason::DeviceResetting));
    assert_eq!(grants(&map(MEMORY)).len(), 1);
}

#[test]
fn a_device_that_has_recovered_ends_mappings_and_takes_new_ones_unless_it_is_gone() {
    let Both { world, memory: _exporter, .. } = both(64 * MIB);
    let peer = world.peer();
    let map = || world.map_flags(peer, FILE, Range::new(0, 4096), MapFlags::empty());
    let before = map();
    world.engine.device_event(ExportId::Files, &DeviceEvent::Recovered);
    assert!(world.engine.grant(grants(&before)[0].id).is_none());
    assert_eq!(grants(&map()).len(), 1);
    world.engine.device_event(ExportId::Files, &DeviceEvent::Removed);
    world.engine.device_event(ExportId::Files, &DeviceEvent::Recovered);
    assert_eq!(refusal(&map()), Some(Reason::DeviceResetting));
}

#[test]
fn pressure_evicts_windows_of_the_same_aperture_only() {
    let Both { world, memory: _exporter, .. } = both(4 * MIB);
    let peer = world.peer();
    let file = world.map(peer, Range::new(0, 2 * MIB));
    world.map_flags(peer, MEMORY, Range::new(0, 2 * MIB), MapFlags::empty());
    world.map_flags(peer, MEMORY, Range::new(2 * MIB, 2 * MIB), MapFlags::empty());
    world.clock.advance(Duration::from_secs(10));
    let more = world.map_flags(peer, MEMORY, Range::new(4 * MIB, 2 * MIB), MapFlags::empty());
    assert_eq!(grants(&more).len(), 1);
    assert!(world.engine.grant(grants(&file)[0].id).is_some(), "older, but of another aperture");
    assert_eq!(world.engine.snapshot().windows, 3);
}

#[test]
fn device_memory_without_an_exporter_is_no_object() {
    let world = World::new();
    let peer = world.peer();
    let request = MapRequest {
        object: MEMORY,
        range: Range::new(0, 4096),
        flags: MapFlags::empty(),
        handle_writable: false,
        uid: 0,
        cache_probe: None,
    };
    let call = MapCall { context: peer.context, client: me(), request: &request, mapping: None, segments_max: 8 };
    assert_eq!(world.engine.device_map(&call), Err(MapError::NoObject { object: MEMORY }));
}
