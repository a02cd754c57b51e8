//! The engine on real apertures: through the software CMB, bytes that a peer stores reach the device, and nothing reaches
//! the peer after the cut; of mapped memory nothing is granted.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use peerfs_abi::{MapFlags, Reason, Trigger};
use peerfs_blockdev::{Aperture, BlockDeviceExt, Cmb, DeviceEvent, DeviceSpec, FaultDevice, Medium, MemDevice, OpenMode};

use super::world::*;
use crate::api::*;
use crate::server_importer::{ServerReadError, read_through_server};
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

#[test]
fn memory_that_cannot_be_taken_back_is_granted_to_nobody() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    file.as_file().set_len(32 * MIB).expect("room");
    let spec = DeviceSpec::Pmem(file.path().to_owned(), Medium::PageCache);
    let opened = spec.open(None, OpenMode::ReadWrite, Duration::ZERO).expect("open");
    opened.device.write_at(BASE, &[7; 8192]).expect("write");
    let aperture = opened.aperture.expect("its own");
    let world = World::on(EngineConfig { deadline: Duration::ZERO, ..Default::default() }, aperture.clone());
    let peer = world.peer();
    assert_eq!(refusal(&world.map_write(peer, Range::new(0, 8192))), Some(Reason::NoGrantObject));

    // An importer in the server has no such reason against it, and reaches the blocks where they are; nobody else does.
    let beside = world.peer_with(Arc::new(|| {}), Importer { in_client: false, ..importer() });
    let answer = world.map_write(beside, Range::new(0, 8192));
    assert_eq!(refusal(&answer), None);
    let id = grants(&answer)[0].id;
    assert!(world.engine.lend_window(id, Client { uid: me().uid + 1, ..me() }).is_none());
    let window = world.engine.lend_window(id, me()).expect("its own");
    window.grant_fd(false).expect_err("no process can be given it");
    let mut seen = [0; 8192];
    window.peer_read(0, &mut seen).expect("read");
    assert_eq!(seen, [7; 8192]);
    assert_eq!(world.engine.revoke(None, Range::ALL, Trigger::Administrator).revoked, 1);
    window.peer_read(0, &mut seen).expect_err("revoked");
    assert!(world.engine.lend_window(id, me()).is_none() && aperture.info().windows == 0);
    let mut blocks = [0; 8192];
    opened.device.read_at(BASE, &mut blocks).expect("read");
    assert_eq!(blocks, [7; 8192]);
}

#[test]
fn reads_by_the_server_take_the_place_of_the_user_for_whom_it_reads() {
    let memory = Arc::new(MemDevice::new(32 * MIB).expect("memory device"));
    let engine = memory.engine().clone();
    let config = EngineConfig { sessions_per_user: 1, ..EngineConfig::default() };
    let world = World::on(config, Arc::new(Cmb::new(memory, engine, 8 * MIB)));
    let _the_servers_own = world.peer();
    let read = |uid| {
        let range = Range::new(0, 8192);
        let request =
            MapRequest { object: FILE, range, flags: MapFlags::empty(), handle_writable: false, uid, cache_probe: None };
        let nothing = |_: u64, _: &mut [u8]| Ok::<_, std::convert::Infallible>(0);
        read_through_server(&world.engine, &request, nothing, |_| {})
    };
    let refused = read(me().uid).expect_err("this user has a session");
    assert!(matches!(refused, ServerReadError::Session(_)), "{refused}");
    for _ in 0..2 {
        assert_eq!(read(me().uid + 1).expect("another user").direct_window, 8192);
    }
}
