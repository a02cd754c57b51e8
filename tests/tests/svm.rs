//! The same address for processor and device: a linked structure with absolute pointers in a file, walked by both,
//! also while its range is revoked again and again.

use std::fs::{self, File as StdFile, OpenOptions};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use peerfs_client::cpu::{Device, DeviceConfig};
use peerfs_client::svm::{Direction, Placement, SharedRange};
use peerfs_client::{Error, File, ImporterSpec, MapFlags, Session};
use peerfs_tests::{Random, ScratchMount, seed};

const NODES: u64 = 40_000;
/// A node: the address of the next one and a value.
const NODE_BYTES: u64 = 64;
const LENGTH: u64 = NODES * NODE_BYTES;
const VA_BITS: u32 = 40;

struct Scene {
    device: Device,
    file: File,
    path: PathBuf,
    mount: ScratchMount,
}

fn scene() -> Scene {
    let mount = ScratchMount::new("64M", &["--cmb", "16M"]).expect("a mount");
    let path = mount.join("list");
    fs::write(&path, vec![0; LENGTH as usize]).expect("a file");
    let file = File::open_with(&path, OpenOptions::new().read(true).write(true)).expect("open");
    let importer = ImporterSpec { va_bits: VA_BITS, ..ImporterSpec::cpu() };
    let session = Session::open(mount.path(), importer).expect("a session");
    let config = DeviceConfig { va_bits: VA_BITS, ..DeviceConfig::default() };
    Scene { device: Device::new(&session, config), file, path, mount }
}

/// A list through all nodes in random order, with pointers for `base`. Answers the first node and the sum of the values.
fn write_list(file: &File, base: u64, random: &mut Random) -> (u64, u64) {
    let mut order: Vec<u64> = (0..NODES).collect();
    for last in (1..order.len()).rev() {
        order.swap(last, random.below(last as u64 + 1) as usize);
    }
    let mut content = vec![0; LENGTH as usize];
    let mut sum = 0_u64;
    for (position, node) in order.iter().enumerate() {
        let next = order.get(position + 1).map_or(0, |next| base + next * NODE_BYTES);
        let value = random.below(1 << 40);
        sum = sum.wrapping_add(value);
        let at = (node * NODE_BYTES) as usize;
        content[at..at + 8].copy_from_slice(&next.to_ne_bytes());
        content[at + 8..at + 16].copy_from_slice(&value.to_ne_bytes());
    }
    file.write_at(0, &content).expect("write");
    (base + order[0] * NODE_BYTES, sum)
}

/// Follows the pointers; answers nodes and sum.
fn walk(head: u64, mut load: impl FnMut(u64, &mut [u8])) -> (u64, u64) {
    let (mut at, mut nodes, mut sum) = (head, 0, 0_u64);
    while at != 0 {
        assert!(nodes < NODES, "a loop");
        let mut node = [0; 16];
        load(at, &mut node);
        let word = |from: usize| u64::from_ne_bytes(node[from..from + 8].try_into().expect("8 bytes"));
        (at, sum, nodes) = (word(0), sum.wrapping_add(word(8)), nodes + 1);
    }
    (nodes, sum)
}

fn walk_by_device(device: &Device, head: u64) -> (u64, u64) {
    walk(head, |at, node| assert_eq!(device.load(at, node).expect("load"), node.len()))
}

fn walk_by_processor(shared: &SharedRange, head: u64) -> (u64, u64) {
    let base = shared.address();
    walk(head, |at, node| shared.cpu().read((at - base) as usize, node).expect("load"))
}

#[test]
fn pointers_mean_the_same_to_processor_and_device() {
    let scene = scene();
    for direction in [Direction::BottomUp, Direction::TopDown] {
        let placement = Placement { direction, ..Placement::default() };
        let shared = SharedRange::map(&scene.device, &scene.path, 0..LENGTH, MapFlags::empty(), placement).expect("a place");
        assert!(shared.address() + LENGTH <= 1 << VA_BITS, "{shared:?}");
        assert!(shared.address().is_multiple_of(2 << 20));
        let mut random = Random::new(seed(7));
        let (head, sum) = write_list(&scene.file, shared.address(), &mut random);
        assert_eq!(walk_by_device(&scene.device, head), (NODES, sum));
        assert_eq!(walk_by_processor(&shared, head), (NODES, sum));
        assert_eq!(walk_by_device(&scene.device, head), (NODES, sum));
    }
    let stats = scene.device.stats();
    println!("{stats:?}");
    assert!(stats.moved.direct() > 0, "nothing went directly");
    assert!(scene.device.bound().is_empty(), "dropping a shared range ends the device's side");
}

#[test]
fn a_walk_goes_on_at_the_same_addresses_across_revocations() {
    let scene = scene();
    let shared =
        SharedRange::map(&scene.device, &scene.path, 0..LENGTH, MapFlags::empty(), Placement::default()).expect("a place");
    let mut random = Random::new(seed(7));
    let (head, sum) = write_list(&scene.file, shared.address(), &mut random);
    // The first pass faults everything in.
    assert_eq!(walk_by_device(&scene.device, head), (NODES, sum));
    let before = scene.device.stats();
    let mut revoked = 0;
    thread::scope(|scope| {
        let walkers =
            [0, 1].map(|_| scope.spawn(|| (0..10).for_each(|_| assert_eq!(walk_by_device(&scene.device, head), (NODES, sum)))));
        while walkers.iter().any(|walker| !walker.is_finished()) {
            revoked += scene.file.revoke(..).expect("revoke").grants;
            // More than a few in a second and the server keeps the range closed: the walk would fall back.
            thread::sleep(Duration::from_millis(150));
        }
    });
    assert_eq!(walk_by_processor(&shared, head), (NODES, sum));
    let stats = scene.device.stats();
    println!("{revoked} grants revoked, {stats:?}");
    assert!(revoked > 0 && stats.faults > before.faults && stats.shootdowns > 0);
    assert!(stats.moved.direct() > stats.moved.fallback, "most goes directly");
}

#[test]
fn a_device_that_writes_is_seen_by_the_processor_and_back() {
    let scene = scene();
    let shared = SharedRange::map(&scene.device, &scene.path, 0..LENGTH, MapFlags::WRITE, Placement::default()).expect("a place");
    let at = shared.address() + 8192;
    scene.device.store(at, b"by the device").expect("store");
    let mut back = [0; 13];
    shared.cpu().read(8192, &mut back).expect("load");
    assert_eq!(&back, b"by the device");
    shared.cpu().write(8192, b"by the CPU...").expect("store");
    assert_eq!(scene.device.load(at, &mut back).expect("load"), 13);
    assert_eq!(&back, b"by the CPU...");
    scene.device.store(at, b"and the device").expect("store");
    shared.cpu().read(8192, &mut back).expect("load");
    assert_eq!(&back, b"and the devic");
}

#[test]
fn limits_are_honoured_and_a_full_space_is_told() {
    let scene = scene();
    let low = 0x35_0000_0000;
    let placement = Placement { low, high: low + (8 << 20), alignment: 4096, direction: Direction::TopDown };
    let map = |placement| SharedRange::map(&scene.device, &scene.path, 0..LENGTH, MapFlags::empty(), placement);
    let first = map(placement).expect("room");
    let second = map(placement).expect("room");
    let third = map(placement).expect("room");
    assert!(low <= third.address() && third.address() < second.address() && second.address() < first.address());
    assert!(matches!(map(placement), Err(Error::AddressSpaceFull { .. })));
    drop(second);
    map(placement).expect("room again");
    // Beyond the device's 40 bits there is no place, whatever the processor has.
    let beyond = Placement { low: 1 << VA_BITS, high: u64::MAX, ..placement };
    assert!(matches!(map(beyond), Err(Error::AddressSpaceFull { .. })));
    let refused = scene.device.bind(1 << VA_BITS, &scene.file, 0, 4096, MapFlags::empty());
    assert!(matches!(refused, Err(Error::DeviceAddress { .. })));
    // A place that only the device has taken is taken.
    scene.device.bind(low + (16 << 20), &scene.file, 0, 4096, MapFlags::empty()).expect("bind");
    let exact = Placement { low: low + (16 << 20), high: low + (20 << 20), alignment: 4096, direction: Direction::BottomUp };
    assert_eq!(map(exact).expect("room beside it").address(), low + (16 << 20) + 4096);
    drop(StdFile::open(scene.mount.path()).expect("it is alive"));
}
