//! Atomic operations of several importers, in one process and in others, on a real mount: the sum is exact,
//! whatever is revoked on the way.

use std::fs::{File as StdFile, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

use peerfs_client::cpu::{Device, DeviceConfig};
use peerfs_client::{Error, File, ImporterFlags, ImporterSpec, MapFlags, Reason, Session};
use peerfs_tests::ScratchMount;

const OFFSET: u64 = 4096 + 64;
const PROCESSES: u64 = 3;
const EACH: u64 = 4_000_000;
const ATOMIC: MapFlags = MapFlags::WRITE.union(MapFlags::ATOMIC);

fn adder(mount: &ScratchMount, path: &PathBuf) -> Child {
    let mut program = std::env::current_exe().expect("a test has a path");
    program.pop();
    program.pop();
    let mut command = Command::new(program.join("peerfs-adder"));
    command.arg(mount.path()).arg(path).args([OFFSET.to_string(), EACH.to_string()]);
    command.stdout(Stdio::piped()).spawn().expect("cargo built peerfs-adder beside the test")
}

/// Additions and maps of an adder that has ended.
fn outcome(child: Child) -> (u64, u64) {
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("numbers");
    let mut numbers = text.split_whitespace().map(|number| number.parse().expect("a number"));
    (numbers.next().expect("additions"), numbers.next().expect("maps"))
}

/// Adds through a device of this process, which maps again by itself.
fn add_by_device(device: &Device, address: u64) {
    let mut done = 0;
    while done < EACH {
        match device.fetch_add(address, 1_u64) {
            Ok(_) => done += 1,
            Err(Error::AtomicUnsupported { reason: Reason::Busy, .. }) => thread::sleep(Duration::from_millis(1)),
            Err(error) => panic!("after {done}: {error}"),
        }
    }
}

#[test]
fn the_sum_of_several_importers_is_exact_while_the_range_is_revoked() {
    let mount = ScratchMount::new("64M", &["--cmb", "16M"]).expect("mount");
    let path = mount.join("counters");
    fs::write(&path, vec![0; 1 << 20]).expect("write");
    let file = File::open_with(&path, OpenOptions::new().read(true).write(true)).expect("open");
    let session = Session::open(mount.path(), ImporterSpec::cpu()).expect("session");
    let device = Device::new(&session, DeviceConfig::default());
    device.bind(0x10_0000, &file, 0, 1 << 20, ATOMIC).expect("bind");

    let children: Vec<Child> = (0..PROCESSES).map(|_| adder(&mount, &path)).collect();
    let (mut revoked, began) = (0, Instant::now());
    thread::scope(|scope| {
        let own = scope.spawn(|| add_by_device(&device, 0x10_0000 + OFFSET));
        while !own.is_finished() {
            revoked += file.revoke(..).expect("revoke").grants;
            // More than a few in a second and the server keeps the range closed, which would test nothing.
            thread::sleep(Duration::from_millis(150));
        }
    });
    let (added, maps) = children.into_iter().map(outcome).fold((EACH, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    let mut word = [0; 8];
    StdFile::open(&path).and_then(|file| file.read_exact_at(&mut word, OFFSET)).expect("read");
    println!("{added} additions, {maps} maps in other processes, {revoked} grants revoked, {:?}", began.elapsed());
    assert_eq!(u64::from_ne_bytes(word), added);
    assert_eq!(added, (PROCESSES + 1) * EACH);
    let stats = device.stats();
    assert_eq!((stats.moved.direct(), stats.moved.fallback), (EACH * 8, 0));
    assert!(revoked > 0, "nothing was revoked");
}

#[test]
fn what_cannot_be_atomic_is_refused() {
    let mount = ScratchMount::new("64M", &["--cmb", "16M"]).expect("mount");
    let path = mount.join("file");
    fs::write(&path, vec![0; 8192]).expect("write");
    StdFile::options().write(true).open(&path).expect("open").set_len(16384).expect("extend");
    let file = File::open_with(&path, OpenOptions::new().read(true).write(true)).expect("open");
    let mut spec = ImporterSpec::cpu();
    let session = Session::open(mount.path(), spec.clone()).expect("session");
    let mapping = session.map(&file, .., ATOMIC).expect("map");
    assert_eq!(mapping.fetch_add(8, 7_u32).expect("direct"), 0);
    let hole = mapping.fetch_add(8192, 1_u64);
    assert!(matches!(hole, Err(Error::AtomicUnsupported { reason: Reason::Hole, .. })), "{hole:?}");

    spec.flags.remove(ImporterFlags::ATOMIC);
    let session = Session::open(mount.path(), spec).expect("session");
    let mapping = session.map(&file, .., ATOMIC).expect("map");
    let refused = mapping.fetch_add(8, 1_u64);
    assert!(matches!(refused, Err(Error::AtomicUnsupported { reason: Reason::AtomicUnsupported, .. })), "{refused:?}");
    assert_eq!(mapping.segments()[0].reason, Some(Reason::AtomicUnsupported));
}
