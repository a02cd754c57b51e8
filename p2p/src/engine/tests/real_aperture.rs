//! The engine on the software CMB: bytes that a peer stores reach the device, and nothing reaches the peer after the cut.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use peerfs_abi::{Reason, Trigger};
use peerfs_blockdev::{Aperture, BlockDeviceExt, Cmb, DeviceEvent, FaultDevice, MemDevice};

use super::world::*;
use crate::api::*;
use crate::types::*;

struct Stack {
    world: World,
    device: Arc<Cmb>,
    faults: Arc<FaultDevice>,
}

fn stack() -> Stack {
    let memory = Arc::new(MemDevice::new(32 * MIB).expect("memory device"));
    let faults = Arc::new(FaultDevice::new(memory, 1));
    let ring = peerfs_blockdev::Engine::new().expect("io_uring");
    let device = Arc::new(Cmb::new(faults.clone(), ring, 8 * MIB));
    let aperture: Arc<dyn Aperture> = device.clone();
    let world = World::on(EngineConfig { deadline: Duration::ZERO, ..Default::default() }, aperture);
    world.engine.subscribe(&*faults).expect("thread");
    Stack { world, device, faults }
}

/// Where the test's file lies on the device.
const BASE: u64 = FILE.0 << 20;

#[test]
fn stores_through_a_grant_reach_the_device() {
    let Stack { world, device, .. } = stack();
    device.write_at(BASE, &[7; 8192]).expect("write");
    let peer = world.peer();
    let part = grants(&world.map_write(peer, Range::new(0, 8192)))[0];
    let memory = File::from(world.engine.take_grant(part.id, me(), true).expect("grant"));
    let mut seen = [0; 4];
    memory.read_exact_at(&mut seen, 4094).expect("filled from the device");
    assert_eq!(seen, [7; 4]);
    memory.write_all_at(b"peer", 4094).expect("store");
    let guard = world.engine.close_range(FILE, Range::new(0, 1), Trigger::Punch);
    assert_eq!(guard.report().enforced, 1);
    assert_eq!(memory.metadata().expect("stat").len(), 0, "cut");
    let mut block = vec![0; 8192];
    device.read_at(BASE, &mut block).expect("read");
    assert_eq!(&block[4094..4098], b"peer");
    assert_eq!(Aperture::info(&*device).used_bytes, 0);
}

#[test]
fn events_of_the_device_arrive_through_the_subscription() {
    let Stack { world, faults, .. } = stack();
    let peer = world.peer();
    world.map(peer, Range::new(0, 8192));
    faults.emit(DeviceEvent::Removed);
    while world.engine.is_mapped(None) {
        std::thread::yield_now();
    }
    assert_eq!(refusal(&world.map(peer, Range::new(0, 4096))), Some(Reason::DeviceResetting));
}
