//! Devices whose blocks are memory, and windows onto blocks where they live.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use peerfs_blockdev::{
    Aperture, ApertureKind, BlockDevice, BlockDeviceExt, BlockMemory, DeviceError, DeviceEvent, DeviceEvents, DeviceInfo,
    DeviceSpec, MappedAperture, MappedDevice, Medium, OpenMode, PathKind, PmemDevice, Run, WindowError, WindowSpec,
};

const BLOCK: usize = 4096;
const MIB: u64 = 1 << 20;
const NO_WAIT: Duration = Duration::ZERO;

/// Bytes in the heap. Each is copied on its own, so that what tears can be seen to tear.
#[derive(Debug)]
struct Heap {
    bytes: Mutex<Vec<u8>>,
    barriers: AtomicU64,
    persisted: Mutex<Vec<(u64, u64)>>,
    fails: AtomicBool,
}

impl Heap {
    fn new(length: usize) -> Arc<Heap> {
        let bytes = Mutex::new(vec![0; length]);
        Arc::new(Heap { bytes, barriers: AtomicU64::new(0), persisted: Mutex::default(), fails: AtomicBool::new(false) })
    }

    fn check(&self, op: &'static str, offset: u64, length: usize) -> Result<(), DeviceError> {
        if !self.fails.load(Ordering::SeqCst) {
            return Ok(());
        }
        Err(DeviceError::Io { device: "heap".into(), op, offset, length: length as u64, errno: libc::EIO })
    }

    /// Stores as a peer does: past the device.
    fn poke(&self, offset: usize, data: &[u8]) {
        self.bytes.lock().expect("no panic")[offset..offset + data.len()].copy_from_slice(data);
    }

    fn peek(&self, offset: usize, length: usize) -> Vec<u8> {
        self.bytes.lock().expect("no panic")[offset..offset + length].to_vec()
    }
}

impl BlockMemory for Heap {
    fn length(&self) -> u64 {
        self.bytes.lock().expect("no panic").len() as u64
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), DeviceError> {
        self.check("read", offset, out.len())?;
        for (at, byte) in out.iter_mut().enumerate() {
            *byte = self.bytes.lock().expect("no panic")[offset as usize + at];
        }
        Ok(())
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        self.check("write", offset, data.len())?;
        for (at, byte) in data.iter().enumerate() {
            self.bytes.lock().expect("no panic")[offset as usize + at] = *byte;
        }
        Ok(())
    }
    fn barrier(&self) -> Result<(), DeviceError> {
        self.barriers.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
    fn persist(&self, offset: u64, length: u64) -> Result<(), DeviceError> {
        self.persisted.lock().expect("no panic").push((offset, length));
        Ok(())
    }
    fn path(&self) -> PathKind {
        PathKind::DirectBar
    }
}

fn info() -> DeviceInfo {
    DeviceInfo { name: "heap".into(), backend: "heap", size_bytes: 0, direct_io: true }
}

fn device(memory: &Arc<Heap>, mode: OpenMode) -> MappedDevice {
    MappedDevice::new(memory.clone(), info(), mode, Arc::default())
}

fn aperture(memory: &Arc<Heap>) -> MappedAperture {
    MappedAperture::new("heap", Arc::new(device(memory, OpenMode::ReadWrite)), memory.clone())
}

/// A window of two blocks that are apart on the device: 4..5 and 2..3.
fn spec(valid_length: u64) -> WindowSpec {
    let run = |window_block: u64, device_block: u64| Run {
        window_offset: window_block * BLOCK as u64,
        device_offset: device_block * BLOCK as u64,
        length: BLOCK as u64,
    };
    WindowSpec { owner: 1, length: 2 * BLOCK as u64, runs: vec![run(0, 4), run(1, 2)], valid_length }
}

/// Where byte `at` of that window is in memory.
fn home(at: usize) -> usize {
    [4, 2][at / BLOCK] * BLOCK + at % BLOCK
}

#[test]
fn whole_blocks_of_memory_are_a_device() {
    let memory = Heap::new(64 * BLOCK + 100);
    let device = device(&memory, OpenMode::ReadWrite);
    assert_eq!(device.info().size_bytes, 64 * BLOCK as u64);
    let data: Vec<u8> = (0..20 * BLOCK).map(|at| (at % 251) as u8).collect();
    device.write_at(3 * BLOCK as u64, &data).expect("write");
    let mut back = vec![0; data.len()];
    device.read_at(3 * BLOCK as u64, &mut back).expect("read");
    assert!(back == data);
    assert_eq!(device.discard(0, 64 * BLOCK as u64).expect_err("memory is not given up").errno(), libc::EOPNOTSUPP);
    device.write_zeroes(5 * BLOCK as u64, 10 * BLOCK as u64).expect("zero");
    assert!(memory.peek(5 * BLOCK, 10 * BLOCK).iter().all(|byte| *byte == 0));
    assert_eq!(memory.peek(4 * BLOCK, BLOCK), data[BLOCK..2 * BLOCK]);
    assert_eq!(memory.peek(15 * BLOCK, BLOCK), data[12 * BLOCK..13 * BLOCK]);
    device.flush().expect("flush");
    assert_eq!(memory.barriers.load(Ordering::SeqCst), 1);
    for (offset, length) in [(64 * BLOCK as u64, BLOCK), (1, BLOCK), (u64::MAX - 4095, BLOCK), (0, 65 * BLOCK)] {
        assert!(matches!(device.write_at(offset, &vec![0; length]), Err(DeviceError::BadRange { .. })), "{offset}+{length}");
        assert!(device.write_zeroes(offset, length as u64).is_err() && device.discard(offset, length as u64).is_err());
    }
    memory.fails.store(true, Ordering::SeqCst);
    assert_eq!(device.read_at(0, &mut [0; BLOCK]).expect_err("told to fail").errno(), libc::EIO);
}

#[test]
fn what_is_open_for_reading_changes_nothing() {
    let memory = Heap::new(8 * BLOCK);
    memory.poke(0, &[7; BLOCK]);
    let device = device(&memory, OpenMode::ReadOnly);
    let mut block = [0; BLOCK];
    device.read_at(0, &mut block).expect("read");
    assert_eq!(block, [7; BLOCK]);
    let tried = [device.write_at(0, &[1; BLOCK]), device.write_zeroes(0, BLOCK as u64), device.discard(0, BLOCK as u64)];
    assert!(tried.into_iter().all(|tried| tried.is_err_and(|err| err.errno() == libc::EROFS)));
    device.flush().expect("nothing to do");
    assert_eq!((memory.peek(0, BLOCK), memory.barriers.load(Ordering::SeqCst)), (vec![7; BLOCK], 0));
}

#[test]
fn a_block_is_never_read_in_the_middle_of_a_write() {
    let memory = Heap::new(4 * BLOCK);
    let device = device(&memory, OpenMode::ReadWrite);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for version in 1..=60 {
                device.write_at(0, &[version; 2 * BLOCK]).expect("write");
            }
            done.store(true, Ordering::SeqCst);
        });
        let mut seen = 0;
        let mut blocks = [0; 2 * BLOCK];
        while !done.load(Ordering::SeqCst) {
            device.read_at(0, &mut blocks).expect("read");
            for block in blocks.chunks(BLOCK) {
                assert!(block.iter().all(|byte| *byte == block[0]), "torn");
                assert!(block[0] >= seen, "older than what was read before");
            }
            seen = blocks[0];
        }
    });
}

#[test]
fn the_owner_of_the_memory_reports_what_happens_to_it() {
    let events = Arc::new(DeviceEvents::default());
    let device = MappedDevice::new(Heap::new(BLOCK), info(), OpenMode::ReadWrite, events.clone());
    let heard = Arc::new(Mutex::new(Vec::new()));
    for _ in 0..2 {
        let heard = heard.clone();
        device.subscribe(Arc::new(move |event| heard.lock().expect("no panic").push(event)));
    }
    events.report(&DeviceEvent::Removed);
    assert_eq!(*heard.lock().expect("no panic"), [DeviceEvent::Removed, DeviceEvent::Removed]);
}

#[test]
fn a_window_is_permission_and_moves_nothing() {
    let memory = Heap::new(8 * BLOCK);
    for block in 0..8 {
        memory.poke(block * BLOCK, &[block as u8 + 1; BLOCK]);
    }
    let before = memory.peek(0, 8 * BLOCK);
    let aperture = aperture(&memory);
    let window = aperture.open_window(spec(2 * BLOCK as u64)).expect("a window");
    let told = Aperture::info(&aperture);
    assert_eq!((told.kind, told.path, told.grantable), (ApertureKind::Identity, PathKind::DirectBar, false));
    assert_eq!((told.capacity_bytes, told.used_bytes, told.windows), (8 * BLOCK as u64, 2 * BLOCK as u64, 1));
    assert_eq!((window.length(), window.runs()), (2 * BLOCK as u64, &spec(0).runs[..]));
    assert!(window.grant_fd(false).expect_err("refused").to_string().contains("--cmb"));
    assert!(window.custody_fd().expect("nobody has to keep it").is_none());
    window.cut();
    window.write_back().expect("nothing to do");
    window.write_back().expect("nothing to do again");
    assert!(memory.peek(0, 8 * BLOCK) == before);
    let told = Aperture::info(&aperture);
    assert_eq!((told.used_bytes, told.windows), (0, 0));
}

#[test]
fn blocks_are_in_one_window_at_a_time() {
    let memory = Heap::new(8 * BLOCK);
    let aperture = aperture(&memory);
    let first = aperture.open_window(spec(0)).expect("a window");
    let refused = aperture.open_window(spec(0)).expect_err("taken");
    assert!(matches!(refused, WindowError::Overlap { device_offset } if device_offset == 2 * BLOCK as u64), "{refused}");
    drop(first);
    let again = aperture.open_window(spec(0)).expect("free again");
    again.write_back().expect("write back");
    let mut outside = spec(0);
    outside.runs[1].device_offset = 8 * BLOCK as u64;
    let mut behind = spec(0);
    behind.runs[1].window_offset = 2 * BLOCK as u64;
    let mut twice = spec(0);
    twice.runs[1].device_offset = twice.runs[0].device_offset;
    for bad in [outside, behind, twice] {
        assert!(aperture.open_window(bad).is_err());
    }
    assert_eq!((Aperture::info(&aperture).used_bytes, Aperture::info(&aperture).windows), (0, 0));
}

#[test]
fn nothing_of_a_peer_stays_behind_the_end_of_the_file() {
    let memory = Heap::new(8 * BLOCK);
    let aperture = aperture(&memory);
    memory.poke(0, &[9; 8 * BLOCK]);
    let end = BLOCK + 100;
    let window = aperture.open_window(spec(end as u64)).expect("a window");
    window.set_writable();
    assert_eq!(memory.peek(home(BLOCK), 100), [9; 100], "the file's bytes stay");
    assert!(memory.peek(home(end), BLOCK - 100).iter().all(|byte| *byte == 0), "old bytes are cleared at open");

    memory.poke(home(end), &[5; 50]);
    window.set_valid_length(end as u64 + 200);
    assert!(memory.peek(home(end), 200).iter().all(|byte| *byte == 0), "the file grows by zeros");

    let mut block = memory.peek(home(BLOCK), BLOCK);
    block[300..400].fill(6);
    aperture.write_at(home(BLOCK) as u64, &block).expect("write");
    window.set_valid_length(end as u64 + 300);
    assert_eq!(memory.peek(home(BLOCK + 300), 100), [6; 100], "what the filesystem wrote before it moved the end stays");

    window.set_valid_length(50);
    assert!(memory.peek(home(50), BLOCK - 50).iter().all(|byte| *byte == 0), "the file shrinks");
    assert!(memory.peek(home(BLOCK), BLOCK).iter().all(|byte| *byte == 0));
    assert_eq!(memory.peek(home(0), 50), [9; 50]);

    memory.poke(home(60), &[5; 50]);
    let second = BLOCK as u64..2 * BLOCK as u64;
    window.disown(std::slice::from_ref(&second));
    memory.poke(home(BLOCK), &[8; BLOCK]);
    window.cut();
    window.write_back().expect("write back");
    assert!(memory.peek(home(50), BLOCK - 50).iter().all(|byte| *byte == 0));
    assert_eq!(memory.peek(home(BLOCK), BLOCK), [8; BLOCK], "blocks of another owner are left alone");
    let persisted: Vec<_> = memory.persisted.lock().expect("no panic").clone();
    assert_eq!(persisted, [(4 * BLOCK as u64, BLOCK as u64), (2 * BLOCK as u64, BLOCK as u64)]);
}

#[test]
fn what_peers_stored_is_durable_after_a_flush() {
    let memory = Heap::new(8 * BLOCK);
    let aperture = aperture(&memory);
    let window = aperture.open_window(spec(2 * BLOCK as u64)).expect("a window");
    window.flush().expect("flush");
    assert!(memory.persisted.lock().expect("no panic").is_empty(), "nobody may write");
    window.set_writable();
    window.flush().expect("flush");
    assert_eq!(memory.persisted.lock().expect("no panic").len(), 2);
}

#[test]
fn memory_that_fails_keeps_the_window_until_a_repeat() {
    let memory = Heap::new(8 * BLOCK);
    memory.poke(0, &[9; 8 * BLOCK]);
    let aperture = aperture(&memory);
    memory.fails.store(true, Ordering::SeqCst);
    assert!(matches!(aperture.open_window(spec(100)), Err(WindowError::Device(_))));
    memory.fails.store(false, Ordering::SeqCst);
    let window = aperture.open_window(spec(100)).expect("nothing is left of the first attempt");
    window.set_writable();
    memory.fails.store(true, Ordering::SeqCst);
    window.cut();
    window.write_back().expect_err("told to fail");
    assert_eq!(Aperture::info(&aperture).windows, 1);
    memory.fails.store(false, Ordering::SeqCst);
    window.write_back().expect("repeated");
    assert_eq!(Aperture::info(&aperture).windows, 0);
}

/// Writes of the filesystem beside windows that come, go and move their end: only complete writes are seen, nobody waits for good.
#[test]
fn windows_come_and_go_beside_writes() {
    let memory = Heap::new(8 * BLOCK);
    let aperture = aperture(&memory);
    std::thread::scope(|scope| {
        for writer in 0..2_u8 {
            let aperture = aperture.clone();
            scope.spawn(move || {
                for version in 1..=40_u8 {
                    aperture.write_at(0, &[version * 2 + writer; 8 * BLOCK]).expect("write");
                }
            });
        }
        for _ in 0..40 {
            let window = aperture.open_window(spec(2 * BLOCK as u64)).expect("a window");
            window.set_writable();
            window.set_valid_length(2 * BLOCK as u64);
            window.write_back().expect("write back");
        }
    });
    for block in memory.peek(0, 8 * BLOCK).chunks(BLOCK) {
        assert!(block[0] >= 80 && block.iter().all(|byte| *byte == block[0]));
    }
}

fn file(directory: &Path, size: u64) -> PathBuf {
    let path = directory.join("pmem");
    File::create(&path).and_then(|file| file.set_len(size)).expect("room");
    path
}

fn open(path: &Path, mode: OpenMode) -> Result<PmemDevice, DeviceError> {
    PmemDevice::open(path, Medium::PageCache, mode, NO_WAIT)
}

#[test]
fn a_file_is_mapped_locked_and_kept() {
    let directory = tempfile::tempdir().expect("a folder");
    let path = file(directory.path(), 2 * MIB + 100);
    let opened = open(&path, OpenMode::ReadWrite).expect("open");
    let told = opened.device.info();
    assert_eq!((told.backend, told.size_bytes, told.direct_io), ("pmem", 2 * MIB, false));
    opened.device.write_at(MIB, &[7; BLOCK]).expect("write");
    opened.device.flush().expect("flush");
    assert!(open(&path, OpenMode::ReadOnly).expect_err("locked").to_string().contains("in use by process"));
    let PmemDevice { device, memory, lock } = opened;
    drop((device, memory));
    assert!(open(&path, OpenMode::ReadWrite).is_err(), "the lock's descriptor keeps it");
    drop(lock);
    assert_eq!(fs::read(&path).expect("read")[MIB as usize..][..BLOCK], [7; BLOCK]);
    let readers = [(); 2].map(|()| open(&path, OpenMode::ReadOnly).expect("shared"));
    let mut block = [0; BLOCK];
    readers[1].device.read_at(MIB, &mut block).expect("read");
    assert_eq!(block, [7; BLOCK]);
    assert_eq!(readers[0].device.write_at(0, &block).expect_err("read-only").errno(), libc::EROFS);
    assert!(readers[0].memory.write(0, &block).is_err() && readers[0].memory.read(2 * MIB, &mut block).is_err());
}

#[test]
fn what_is_no_persistent_memory_is_refused() {
    let directory = tempfile::tempdir().expect("a folder");
    let refused =
        |path: &Path, medium| PmemDevice::open(path, medium, OpenMode::ReadWrite, NO_WAIT).expect_err("refused").to_string();
    assert!(refused(directory.path(), Medium::Dax).contains("neither"));
    assert!(refused(&directory.path().join("none"), Medium::Dax).contains("peerfs mkfs pmem:"));
    assert!(refused(Path::new("/dev/null"), Medium::PageCache).contains("/dev/daxX.Y"));
    let path = file(directory.path(), MIB);
    // Temporary directories may be on anything; a filesystem of main memory is never one for DAX.
    let tmpfs = mount(Some("none"), directory.path(), Some("tmpfs"), MsFlags::empty(), None::<&str>);
    if let Err(errno) = tmpfs {
        eprintln!("skipped: cannot mount tmpfs ({errno})");
        return;
    }
    let on_tmpfs = file(directory.path(), MIB);
    let why = refused(&on_tmpfs, Medium::Dax);
    assert!(why.contains("not on a DAX filesystem") && why.contains(&format!("image:{}", path.display())), "{why}");
    umount2(directory.path(), MntFlags::MNT_DETACH).expect("unmount");
}

#[test]
fn a_truncated_file_is_an_error_and_a_report_and_never_a_crash() {
    let directory = tempfile::tempdir().expect("a folder");
    let path = file(directory.path(), 4 * MIB);
    let opened = open(&path, OpenMode::ReadWrite).expect("open");
    let heard = Arc::new(Mutex::new(Vec::new()));
    let noted = heard.clone();
    opened.device.subscribe(Arc::new(move |event| noted.lock().expect("no panic").push(event)));
    File::options().write(true).open(&path).and_then(|file| file.set_len(MIB)).expect("truncate");
    for tried in [opened.device.read_at(2 * MIB, &mut [0; BLOCK]), opened.device.write_at(2 * MIB, &[1; BLOCK])] {
        let err = tried.expect_err("gone");
        assert!(err.errno() == libc::EIO && err.to_string().contains("truncated to 1048576 bytes"), "{err}");
    }
    let lost = DeviceEvent::MediaError { offset: 2 * MIB, length: BLOCK as u64 };
    assert_eq!(*heard.lock().expect("no panic"), [lost.clone(), lost]);
    opened.device.write_at(0, &[1; BLOCK]).expect("the rest works");
}

#[test]
fn a_sparse_file_on_a_full_filesystem_is_no_bad_medium() {
    let directory = tempfile::tempdir().expect("a folder");
    let tmpfs = mount(Some("none"), directory.path(), Some("tmpfs"), MsFlags::empty(), Some("size=1m"));
    if let Err(errno) = tmpfs {
        eprintln!("skipped: cannot mount tmpfs ({errno})");
        return;
    }
    let path = file(directory.path(), 8 * MIB);
    let opened = open(&path, OpenMode::ReadWrite).expect("open");
    let heard = Arc::new(AtomicU64::new(0));
    let count = heard.clone();
    opened.device.subscribe(Arc::new(move |_| {
        count.fetch_add(1, Ordering::SeqCst);
    }));
    let full = (0..8 * MIB).step_by(BLOCK).find_map(|at| opened.device.write_at(at, &[1; BLOCK]).err());
    assert_eq!(full.expect("full").errno(), libc::ENOSPC);
    let mut block = [9; BLOCK];
    opened.device.read_at(7 * MIB, &mut block).expect("a hole can be read");
    assert_eq!((block, heard.load(Ordering::SeqCst)), ([0; BLOCK], 0));
    drop(opened);
    umount2(directory.path(), MntFlags::MNT_DETACH).expect("unmount");
}

#[test]
fn a_name_opens_the_aperture_that_is_asked_for() {
    let directory = tempfile::tempdir().expect("a folder");
    let path = file(directory.path(), 4 * MIB);
    let spec: DeviceSpec = format!("pmem:{},nodax", path.display()).parse().expect("a good name");
    let aperture = |cmb| {
        let opened = spec.open(cmb, OpenMode::ReadWrite, NO_WAIT).expect("open");
        opened.device.write_at(0, &[1; BLOCK]).expect("write");
        opened.aperture.map(|aperture| aperture.info())
    };
    let identity = aperture(None).expect("its own");
    assert_eq!((identity.kind, identity.path, identity.grantable), (ApertureKind::Identity, PathKind::DirectWindow, false));
    assert_eq!((identity.capacity_bytes, identity.name.as_str()), (4 * MIB, "persistent memory"));
    let software = aperture(Some(MIB)).expect("asked for");
    assert_eq!((software.kind, software.capacity_bytes, software.grantable), (ApertureKind::Windowed, MIB, true));
    assert!(aperture(Some(0)).is_none());
}
