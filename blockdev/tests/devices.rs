//! Images, memory and the fault device behind the common seam.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use peerfs_blockdev::{
    ApertureKind, BlockDevice, BlockDeviceExt, DeviceError, DeviceEvent, DeviceSpec, Effect, FaultDevice, FaultRule, ImageDevice,
    Io, MemDevice, OpKind, OpenMode, PathKind, Trigger,
};

const MIB: u64 = 1 << 20;
const NO_WAIT: Duration = Duration::ZERO;

fn image(directory: &Path, size: u64) -> std::path::PathBuf {
    let path = directory.join("volume.img");
    File::create(&path).and_then(|file| file.set_len(size)).expect("room for an image");
    path
}

fn exercise(device: &dyn BlockDevice) {
    let size = device.info().size_bytes;
    let data: Vec<u8> = (0..3 * MIB).map(|i| (i % 253) as u8).collect();
    device.write_at(4096, &data).expect("write");
    let mut got = vec![0; data.len()];
    device.read_at(4096, &mut got).expect("read");
    assert!(got == data);
    device.write_zeroes(8192, 8192).expect("zero");
    device.read_at(4096, &mut got).expect("read");
    assert!(got[..4096] == data[..4096] && got[4096..12288].iter().all(|b| *b == 0));
    assert!(got[12288..] == data[12288..]);
    // A filesystem without direct I/O may have no holes either.
    assert!(device.discard(0, size).is_ok_and(|()| true) || !device.info().direct_io, "discard");
    device.flush().expect("flush");
    for (offset, length) in [(size, 4096), (size - 4096, 8192), (1, 4096), (u64::MAX - 4095, 4096)] {
        let refused = device.write_at(offset, &vec![0; length]);
        assert!(matches!(refused, Err(DeviceError::BadRange { .. })), "{offset}+{length}");
    }
    assert!(device.discard(0, size + 4096).is_err());
    assert!(device.write_zeroes(512, 4096).is_err());
}

#[test]
fn an_image_stores_blocks() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = image(directory.path(), 8 * MIB + 100);
    let device = ImageDevice::open(&path, OpenMode::ReadWrite, NO_WAIT).expect("open");
    assert_eq!(device.info().size_bytes, 8 * MIB);
    exercise(&device);
    let before = device.engine().stats();
    device.read_at(0, &mut vec![0; MIB as usize]).expect("read");
    let after = device.engine().stats();
    if before.pool_registered {
        assert_eq!((after.registered, after.plain), (before.registered + 1, before.plain));
    }
}

#[test]
fn memory_and_faults_store_blocks() {
    let memory = Arc::new(MemDevice::new(8 * MIB).expect("memory device"));
    exercise(&*memory);
    exercise(&FaultDevice::new(memory, 3));
}

#[test]
fn without_direct_io_the_page_cache_serves() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let ramfs = mount(Some("none"), directory.path(), Some("ramfs"), MsFlags::empty(), None::<&str>);
    if let Err(errno) = ramfs {
        eprintln!("skipped: cannot mount ramfs, which knows no O_DIRECT ({errno})");
        return;
    }
    let path = image(directory.path(), 8 * MIB);
    let device = ImageDevice::open(&path, OpenMode::ReadWrite, NO_WAIT).expect("open");
    assert!(!device.info().direct_io);
    exercise(&device);
    drop(device);
    umount2(directory.path(), MntFlags::MNT_DETACH).expect("unmount");
}

#[test]
fn a_truncated_image_says_so() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = image(directory.path(), 8 * MIB);
    let device = ImageDevice::open(&path, OpenMode::ReadWrite, NO_WAIT).expect("open");
    for end in [MIB, MIB + 700] {
        File::options().write(true).open(&path).and_then(|file| file.set_len(end)).expect("truncate");
        for offset in [0, 4 * MIB] {
            let err = device.read_at(offset, &mut vec![0; 2 * MIB as usize]).expect_err("short");
            assert!(err.to_string().contains("truncated"), "{err}");
        }
    }
}

#[test]
fn one_writer_at_a_time() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = image(directory.path(), MIB);
    let first = ImageDevice::open(&path, OpenMode::ReadWrite, NO_WAIT).expect("open");
    for mode in [OpenMode::ReadWrite, OpenMode::ReadOnly] {
        let err = ImageDevice::open(&path, mode, Duration::from_millis(20)).expect_err("locked");
        assert!(err.to_string().contains(&format!("in use by process {}", std::process::id())), "{err}");
    }
    let kept = first.lock_fd().expect("dup");
    drop(first);
    assert!(ImageDevice::open(&path, OpenMode::ReadWrite, NO_WAIT).is_err());
    let waiter = std::thread::spawn({
        let path = path.clone();
        move || ImageDevice::open(&path, OpenMode::ReadWrite, Duration::from_secs(30)).map(drop)
    });
    drop(kept);
    waiter.join().expect("no panic").expect("the lock came free");
    let readers = [(); 2].map(|()| ImageDevice::open(&path, OpenMode::ReadOnly, NO_WAIT).expect("shared"));
    let err = readers[0].write_at(0, &[0; 4096]).expect_err("read-only");
    assert_eq!(err.errno(), libc::EROFS);
}

#[test]
fn what_is_no_image_is_refused() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let refused = |path: &Path| {
        let opened = ImageDevice::open(path, OpenMode::ReadWrite, NO_WAIT);
        opened.expect_err("refused").to_string()
    };
    assert!(refused(directory.path()).contains("neither"));
    assert!(refused(&directory.path().join("none")).contains("does not exist"));
    assert!(refused(&image(directory.path(), 100)).contains("100 bytes"));
    assert!(refused(Path::new("/dev/null")).contains("neither"));
}

#[test]
fn a_name_opens_device_and_aperture() {
    let spec: DeviceSpec = "mem:4M".parse().expect("a good name");
    let opened = spec.open(Some(2 * MIB), OpenMode::ReadWrite, NO_WAIT).expect("open");
    exercise(&*opened.device);
    assert_eq!(opened.aperture.expect("asked for").info().capacity_bytes, 2 * MIB);
    let opened = spec.open(None, OpenMode::ReadWrite, NO_WAIT).expect("open");
    exercise(&*opened.device);
    assert!(spec.open(Some(0), OpenMode::ReadWrite, NO_WAIT).expect("open").aperture.is_none());
    let info = opened.aperture.expect("all of it").info();
    assert_eq!((info.kind, info.path, info.capacity_bytes), (ApertureKind::Identity, PathKind::DirectWindow, 4 * MIB));
}

#[test]
fn a_crash_keeps_or_loses_each_unflushed_sector() {
    for seed in 0..20 {
        let device = FaultDevice::new(Arc::new(MemDevice::new(MIB).expect("memory")), seed);
        device.write_at(0, &[1; 65536]).expect("write");
        device.flush().expect("flush");
        device.write_at(4096, &[2; 16384]).expect("write");
        device.write_at(4096, &[3; 8192]).expect("write");
        assert_eq!(device.unflushed_sectors(), 32);
        device.crash().expect("the memory below works");
        let err = device.read_at(0, &mut [0; 4096]).expect_err("no power");
        assert_eq!(err.errno(), libc::EIO);
        assert!(device.flush().is_err());
        device.reopen();
        let mut got = vec![0; 65536];
        device.read_at(0, &mut got).expect("read");
        let mut seen = [0; 4];
        for (number, sector) in got.chunks(512).enumerate() {
            assert!(sector.iter().all(|b| *b == sector[0]), "a torn sector, seed {seed}");
            let allowed: &[u8] = match number {
                8..24 => &[1, 2, 3],
                24..40 => &[1, 2],
                _ => &[1],
            };
            assert!(allowed.contains(&sector[0]), "sector {number}, seed {seed}");
            seen[sector[0] as usize] += 1;
        }
        assert!(seen[1] > 96 && seen[2] > 0, "some lost, some kept: {seen:?}, seed {seed}");
    }
}

#[test]
fn faults_follow_their_script() {
    let device = FaultDevice::new(Arc::new(MemDevice::new(MIB).expect("memory")), 1);
    let rule = |kind, trigger| FaultRule { kind, trigger, effect: Effect::Error(libc::EIO) };
    device.add_rule(rule(OpKind::Write, Trigger::Nth(1)));
    device.add_rule(rule(OpKind::Read, Trigger::Range { offset: 8192, length: 1 }));
    let write = |offset| device.write_at(offset, &[1; 4096]).is_ok();
    let read = |offset| device.read_at(offset, &mut [0; 4096]).is_ok();
    assert_eq!([write(0), write(0), write(0)], [true, false, true]);
    assert_eq!([read(4096), read(8192), read(12288)], [true, false, true]);
    device.clear_rules();
    device.add_rule(rule(OpKind::Flush, Trigger::Probability(0.5)));
    let failed = (0..200).filter(|_| device.flush().is_err()).count();
    assert!((60..140).contains(&failed), "{failed} of 200");
    let counts = device.counts();
    assert_eq!((counts.reads, counts.writes, counts.flushes), (3, 3, 200));
}

#[test]
fn held_operations_wait_and_dropped_ones_still_happen() {
    let device = FaultDevice::new(Arc::new(MemDevice::new(MIB).expect("memory")), 1);
    let hold = device.hold(OpKind::Write);
    let mut buf = device.buffer(4096);
    buf.fill(5);
    let ticket = device.submit(Io::Write { offset: 0, buf });
    hold.wait_for(1);
    assert_eq!(device.unflushed_sectors(), 0);
    hold.release();
    drop(ticket);
    assert_eq!(device.unflushed_sectors(), 8);
}

#[test]
fn subscribers_hear_of_events() {
    let device = FaultDevice::new(Arc::new(MemDevice::new(MIB).expect("memory")), 1);
    let heard = Arc::new(Mutex::new(Vec::new()));
    let count = Arc::new(AtomicU64::new(0));
    let (sink, counter) = (heard.clone(), count.clone());
    device.subscribe(Arc::new(move |event| sink.lock().expect("no panic").push(event)));
    device.subscribe(Arc::new(move |_| {
        counter.fetch_add(1, Ordering::Relaxed);
    }));
    device.emit(DeviceEvent::Reset);
    device.emit(DeviceEvent::MediaError { offset: 0, length: 4096 });
    assert_eq!(heard.lock().expect("no panic").len(), 2);
    assert_eq!(count.load(Ordering::Relaxed), 2);
}

#[test]
fn durable_contents_are_in_the_file() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let path = image(directory.path(), MIB);
    let device = ImageDevice::open(&path, OpenMode::ReadWrite, NO_WAIT).expect("open");
    device.write_at(8192, &[6; 4096]).expect("write");
    device.flush().expect("flush");
    let mut got = [0; 4096];
    File::open(&path).expect("open").read_exact_at(&mut got, 8192).expect("read");
    assert_eq!(got, [6; 4096]);
}
