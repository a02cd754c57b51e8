//! Copies between a file and an importer that the server drives, without a kernel: both controllers are emulated, the storage's
//! blocks are in windows of its memory buffer. (With real drivers and an IOMMU it is the VM lab's.)

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use peerfs_blockdev::nvme::{Controller, DmaEngine, Namespace, Settings};
use peerfs_blockdev::{Aperture, BlockDevice, Cmb};
use peerfs_fs::coherence::NoMappings;
use peerfs_fs::core::{Core, MountOptions};
use peerfs_fs::error::FsError;
use peerfs_fs::mapping::{EngineCoherence, FileExporter};
use peerfs_fs::ops::Operations;
use peerfs_fs::store::{FormatOptions, OpenOptions, Volume};
use peerfs_fs::types::{Handle, Ino, OpenFlags, SetAttr, WriteOrigin};
use peerfs_nvme_emulator::{EmulatedController, Fault, FaultRule, Profile, Which};
use peerfs_nvme_spec::IoOpcode;
use peerfs_p2p::topology::Topology;
use peerfs_p2p::{
    CacheProbe, CopyCall, CopyDirection, CopyError, DirectPolicy, Engine, EngineConfig, EngineParts, Exporter, FileBytes,
    MapFlags, MapRequest, MemoryCustody, Moved, NvmeImporter, ObjectId, Range, Reason, SystemClock, Trigger, copy,
};
use peerfs_tests::headless::{Ids, NoCache, caller};
use peerfs_tests::{Random, seed};

const MIB: u64 = 1 << 20;
/// Where the importer's bytes begin, logical block.
const PLACE: u64 = 64;
/// What the importer's copies touch, bytes.
const AREA: u64 = 8 * MIB;

/// A volume on a controller with a memory buffer, and another controller as importer.
struct Stage {
    core: Arc<Core>,
    engine: Arc<Engine>,
    aperture: Arc<dyn Aperture>,
    importer: Arc<NvmeImporter>,
    emulator: Arc<EmulatedController>,
    file: (Ino, Handle),
    _exporter: Arc<dyn Exporter>,
}

/// The file as the fallback sees it.
struct Bytes<'a>(&'a Stage);

impl FileBytes for Bytes<'_> {
    type Error = FsError;

    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<usize, FsError> {
        let data = self.0.core.read(self.0.file.1, offset, buffer.len() as u32, false)?;
        buffer[..data.len()].copy_from_slice(&data);
        Ok(data.len())
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<(), FsError> {
        self.0.write(offset, data);
        Ok(())
    }
}

impl Stage {
    fn new(importer: Profile) -> Stage {
        let storage =
            EmulatedController::new(Profile { cmb_bytes: 4 << 20, blocks: 64 << 8, block_power: 12, ..Profile::default() });
        let controller = Arc::new(Controller::open(storage, Settings::default()).expect("the driver takes the controller"));
        let memory = controller.lend_memory().expect("lend").expect("there is some");
        let namespace = Namespace::open(controller, 1, "nvme:storage".into(), false).expect("a namespace");
        let cmb = Arc::new(Cmb::of_controller(Arc::new(namespace), memory));
        let device: Arc<dyn BlockDevice> = cmb.clone();
        let aperture: Arc<dyn Aperture> = cmb;
        Volume::format(device.clone(), &FormatOptions::default()).expect("format");
        let volume = Volume::open(device.clone(), &OpenOptions::default()).expect("open");
        let core = Core::open(volume, device, Arc::new(NoMappings), MountOptions::default()).expect("core");
        let parts = EngineParts {
            aperture: Some(aperture.clone()),
            custody: Arc::new(MemoryCustody::default()),
            clock: Arc::new(SystemClock::default()),
            context_ids: Arc::new(Ids(core.clone())),
        };
        let config = EngineConfig { deadline: Duration::from_millis(20), ..EngineConfig::default() };
        let engine = Engine::new(config, parts);
        let exporter: Arc<dyn Exporter> =
            Arc::new(FileExporter::new(core.clone(), Arc::new(NoCache), DirectPolicy::Prefer, false));
        engine.attach_exporter(Arc::downgrade(&exporter));
        engine.attach_topology(topology());
        core.set_coherence(Arc::new(EngineCoherence::new(&engine)));
        let emulator = EmulatedController::new(Profile { queues: 20, ..importer });
        let dma = DmaEngine::on(emulator.clone(), 1, "nvme:importer".into()).expect("the driver takes the controller");
        let importer = Arc::new(NvmeImporter::new("0000:02:00.0".parse().expect("an address"), dma));
        let flags = OpenFlags { read: true, write: true, direct: true, ..OpenFlags::default() };
        let (attr, opened) = core.create(caller(), 1, b"file", 0o644, true, flags).expect("create");
        Stage { core, engine, aperture, importer, emulator, file: (attr.ino, opened.handle), _exporter: exporter }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            let written = self.core.write(caller(), self.file.1, at, &data[done..], WriteOrigin::default());
            done += written.expect("there is room") as usize;
        }
    }

    fn read(&self) -> Vec<u8> {
        let size = self.core.attr(self.file.0).expect("attributes").size;
        let mut content = vec![0; size as usize];
        for (number, part) in content.chunks_mut(1 << 20).enumerate() {
            let count = Bytes(self).read(number as u64 * MIB, part).expect("read");
            assert_eq!(count, part.len());
        }
        content
    }

    fn set_size(&self, size: u64) {
        self.core.setattr(caller(), self.file.0, None, SetAttr { size: Some(size), ..SetAttr::default() }).expect("truncate");
    }

    fn copy(&self, direction: CopyDirection, range: Range, first_block: u64) -> Result<Moved, CopyError<FsError>> {
        let into_file = direction == CopyDirection::FromImporter;
        let request = MapRequest {
            object: ObjectId(self.file.0),
            range,
            flags: if into_file { MapFlags::WRITE } else { MapFlags::empty() },
            handle_writable: true,
            uid: caller().uid,
            cache_probe: Some(CacheProbe { tid: caller().tid, fd: 0 }),
        };
        copy(&self.engine, &self.importer, &CopyCall { request: &request, direction, first_block }, Bytes(self))
    }

    /// What the importer has from `first_block` on.
    fn importer_holds(&self, first_block: u64, length: u64) -> Vec<u8> {
        let block_bytes = self.importer.engine().block_bytes();
        let mut bytes = vec![0; length.next_multiple_of(block_bytes) as usize];
        self.importer.engine().read(first_block, &mut bytes).expect("read");
        bytes.truncate(length as usize);
        bytes
    }

    fn nothing_is_left(&self) {
        assert_eq!(self.engine.mapping_count(None), 0);
        let info = self.aperture.info();
        assert_eq!((info.used_bytes, info.windows), (0, 0));
        assert_eq!(self.importer.in_flight(), 0);
    }
}

/// Both behind one host bridge that forwards.
fn topology() -> Topology {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let text = r#"{"host_bridges":[{"name":"root","peer_to_peer":"same"}],
        "endpoints":[{"address":"0000:01:00.0","above":"root"},{"address":"0000:02:00.0","above":"root"}],
        "storage":{"address":"0000:01:00.0","aperture":{"bus_address":"0x1000000","bytes":"0x400000"}}}"#;
    std::fs::write(file.path(), text).expect("written");
    Topology::read(file.path()).expect("a topology")
}

fn noise(random: &mut Random, length: u64) -> Vec<u8> {
    let mut bytes = vec![0; length as usize];
    random.fill(&mut bytes);
    bytes
}

#[test]
fn whole_files_go_directly_both_ways() {
    for block_power in [9, 12] {
        let stage = Stage::new(Profile { block_power, blocks: 64 << (20 - block_power), ..Profile::default() });
        let mut random = Random::new(block_power.into());
        let length = 3 * MIB + 5000;
        let content = noise(&mut random, length);
        stage.write(0, &content);
        let moved = stage.copy(CopyDirection::ToImporter, Range::new(0, length), PLACE).expect("copied");
        assert_eq!((moved.direct_bar, moved.fallback_total()), (length, 0), "{moved:?}");
        assert!(stage.importer_holds(PLACE, length) == content);
        let other = noise(&mut random, length);
        stage.write(0, &other);
        let moved = stage.copy(CopyDirection::FromImporter, Range::new(0, length), PLACE).expect("copied");
        assert_eq!((moved.direct_bar, moved.fallback_total()), (length, 0), "{moved:?}");
        assert!(stage.read() == content);
        stage.nothing_is_left();
    }
}

/// Ends the other thread, also when a check has failed.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Random ranges of a file with holes and odd ends, both ways, while others take its ranges back: whichever way the bytes go,
/// they are the right ones.
#[test]
fn bytes_are_right_whatever_way_they_take() {
    let seed = seed(5);
    for round in 0..6 {
        let mut random = Random::new(seed + round);
        let block_power = if random.one_in(2) { 9 } else { 12 };
        let max_transfer = random.below(4) as u8;
        let stage = Stage::new(Profile { block_power, max_transfer, blocks: 64 << (20 - block_power), ..Profile::default() });
        let block = stage.importer.engine().block_bytes();
        let mut importer = noise(&mut random, AREA);
        stage.importer.engine().write(PLACE, &importer).expect("write");
        let (stop, mut direct) = (AtomicBool::new(false), 0);
        std::thread::scope(|scope| {
            let (stage, stop) = (&stage, &stop);
            let _stopped_in_any_case = Stop(stop);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    stage.engine.revoke(None, Range::ALL, Trigger::Administrator);
                    std::thread::sleep(Duration::from_millis(7));
                }
            });
            let mut file = Vec::new();
            for step in 0..40 {
                let what = format!("seed {seed}, round {round}, step {step}");
                match random.below(4) {
                    0 => {
                        let size = random.below(6 * MIB);
                        stage.set_size(size);
                        file.resize(size as usize, 0);
                    }
                    1 => {
                        let (offset, length) = (random.below(5 * MIB), 1 + random.below(MIB));
                        let data = noise(&mut random, length);
                        stage.write(offset, &data);
                        file.resize(file.len().max((offset + length) as usize), 0);
                        file[offset as usize..(offset + length) as usize].copy_from_slice(&data);
                    }
                    way => {
                        let offset = random.below(5 * MIB) / block * block;
                        let (length, at) = (1 + random.below(2 * MIB), random.below(4 * MIB) / block * block);
                        let (start, end) = (at as usize, (at + length) as usize);
                        let place = PLACE + at / block;
                        if way == 2 {
                            let end_of_file = (offset + length).min(file.len() as u64).max(offset);
                            let range = Range { start: offset, end: end_of_file };
                            direct += stage.copy(CopyDirection::ToImporter, range, place).expect(&what).direct_bar;
                            let data = file.get(offset as usize..end_of_file as usize).unwrap_or_default();
                            importer[start..start + data.len()].copy_from_slice(data);
                            let whole = (start + data.len()).next_multiple_of(block as usize);
                            importer[start + data.len()..whole].fill(0);
                            assert!(stage.importer_holds(PLACE, AREA) == importer, "{what}: {range:?} to {place}");
                        } else {
                            let range = Range::new(offset, length);
                            direct += stage.copy(CopyDirection::FromImporter, range, place).expect(&what).direct_bar;
                            file.resize(file.len().max((offset + length) as usize), 0);
                            file[offset as usize..(offset + length) as usize].copy_from_slice(&importer[start..end]);
                        }
                    }
                }
                assert!(stage.read() == file, "{what}: the file");
            }
        });
        println!("round {round}: {direct} bytes directly");
        assert!(direct > 0);
        stage.nothing_is_left();
    }
}

#[test]
fn a_revoked_transfer_is_repeated_and_nothing_lands_after_the_cut() {
    const SLOW: Duration = Duration::from_millis(200);
    let stage = Stage::new(Profile { max_transfer: 7, ..Profile::default() });
    let mut random = Random::new(1);
    let (content, old) = (noise(&mut random, MIB), noise(&mut random, MIB));
    stage.importer.engine().write(PLACE, &content).expect("write");
    stage.write(0, &old);
    // Only what goes to a window: reads of the fallback come later.
    stage.emulator.add_fault(FaultRule::always(Which::Io(IoOpcode::Read), Fault::Slow(SLOW)).times(2));
    std::thread::scope(|scope| {
        let copying = scope.spawn(|| stage.copy(CopyDirection::FromImporter, Range::new(0, MIB), PLACE));
        while stage.importer.in_flight() < 2 {
            assert!(!copying.is_finished(), "nothing was under way");
            std::thread::yield_now();
        }
        let begun = Instant::now();
        stage.set_size(0);
        assert!(begun.elapsed() < SLOW, "the truncation waited for the transfer");
        let moved = copying.join().expect("no panic").expect("copied");
        assert!(moved.fallback[0] > 0, "nothing was revoked: {moved:?}");
        // What was truncated is another file's now, and stays what that wrote.
        stage.set_size(0);
        stage.write(0, &old);
        while begun.elapsed() < SLOW * 2 {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(stage.read() == old, "a transfer landed after the cut");
    });
    stage.nothing_is_left();
}

#[test]
fn what_cannot_go_directly_says_why() {
    let stage = Stage::new(Profile::default());
    let moved = stage.copy(CopyDirection::FromImporter, Range::new(0, 8192), PLACE).expect("copied");
    assert_eq!(moved.fallback[Reason::BeyondEof.slot()], 8192, "{moved:?}");
    let beyond = stage.importer.engine().blocks();
    assert!(matches!(stage.copy(CopyDirection::ToImporter, Range::new(0, 4096), beyond), Err(CopyError::Range)));
    assert!(matches!(stage.copy(CopyDirection::ToImporter, Range::new(100, 4096), 0), Err(CopyError::Range)));
    // As many as there may be have a queue: the next one goes the other way.
    let queues: Vec<_> = (0..16).map(|_| stage.importer.engine().queue().expect("a queue")).collect();
    let moved = stage.copy(CopyDirection::ToImporter, Range::new(0, 8192), PLACE).expect("copied");
    assert_eq!(moved.fallback[Reason::ImporterQuota.slot()], 8192, "{moved:?}");
    drop(queues);
    // An importer that is gone is an error, and only that.
    stage.emulator.remove();
    let failed = stage.copy(CopyDirection::ToImporter, Range::new(0, 8192), PLACE);
    assert!(matches!(failed, Err(CopyError::Queue(_) | CopyError::Importer(_))), "{failed:?}");
    stage.nothing_is_left();
}
