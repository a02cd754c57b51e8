//! The NVMe driver on a controller that does as it should, of every kind there is.

mod nvme;

use std::time::Duration;

use std::sync::Arc;

use nvme::{Rig, assert_rules_were_kept, bounded, inline, pattern, settings};
use peerfs_blockdev::nvme::{Access, ControllerMemory, MAX_REVIVALS, NvmeError, PersistentRegion, Port, Settings};
use peerfs_blockdev::{Aperture, BlockDevice, BlockDeviceExt, BusPlace, Cmb, DeviceError, Io, IoBuf, WindowMemory, WindowSlice};
use peerfs_nvme_emulator::{EmulatedController, Fault, FaultRule, Processing, Profile, Which};
use peerfs_nvme_spec::memory::cmb_memory_space;
use peerfs_nvme_spec::register::offset;

const MIB: usize = 1 << 20;

/// Writes and reads of every interesting length come back, also through memory that the controller does not reach.
fn exercise(rig: &Rig) {
    let device = &rig.device;
    for (number, length) in [4096, 8192, 12288, 128 << 10, MIB, 5 * MIB].into_iter().enumerate() {
        let data = pattern(number as u64, length);
        let offset = (number * 8 * MIB) as u64;
        device.write_at(offset, &data).expect("write");
        let mut back = vec![0; length];
        device.read_at(offset, &mut back).expect("read");
        assert!(back == data, "{length} bytes from a buffer of the pool");
        let heap = IoBuf::zeroed(length);
        let back = device.submit(Io::Read { offset, buf: heap }).wait().expect("read").expect("the buffer comes back");
        assert!(back[..] == data, "{length} bytes from the heap");
    }
    device.flush().expect("flush");
}

#[test]
fn addresses_that_an_earlier_driver_gave_to_the_memory_buffer_are_ours() {
    bounded(|| {
        let profile = Profile { cmb_bytes: 64 << 20, ..inline() };
        let emulator = EmulatedController::new(profile);
        // A reset of the controller does not change it, so whoever had it before may have left it so.
        emulator.write_u64(offset::CMBMSC, cmb_memory_space(0));
        let rig = Rig::on(emulator.clone(), settings()).expect("the driver takes the controller");
        exercise(&rig);
        rig.device.controller().lend_memory().expect("lend").expect("there is some");
        rig.finish();
        assert_eq!(emulator.read_u64(offset::CMBMSC), 0, "nothing is left to the next one");
    });
}

#[test]
fn bytes_come_back_from_every_kind_of_controller() {
    let base = Profile::default();
    let kinds = [
        Profile { block_power: 9, blocks: 128 << 11, ..base.clone() },
        Profile { max_transfer: 0, ..base.clone() },
        Profile { max_transfer: 1, ..base.clone() },
        Profile { entries: 2, ..base.clone() },
        Profile { entries: 2, max_transfer: 1, queues: 1, ..base.clone() },
        Profile { queues: 1, ..base.clone() },
        Profile { vectors: 1, ..base.clone() },
        Profile { vectors: 0, ..base.clone() },
        Profile { stride_power: 3, ..base.clone() },
        Profile { ready_timeout: 0, ..base.clone() },
        Profile { write_cache: false, write_zeroes: false, dataset_management: false, ..base.clone() },
        Profile { spurious_interrupts: true, ..base.clone() },
        base,
    ];
    for kind in kinds {
        for processing in [Processing::Inline, Processing::Thread] {
            let profile = Profile { processing, blocks: kind.blocks.max(32 << 10), ..kind.clone() };
            bounded(move || {
                println!("{profile:?}");
                let rig = Rig::new(profile);
                exercise(&rig);
                assert_eq!((rig.recoveries(), rig.events()), (0, Vec::new()));
                rig.finish();
            });
        }
    }
}

#[test]
fn doorbells_far_apart_limit_the_queues() {
    // 2 KiB apart: the BAR of 16 KiB has room for those of the admin queue and of two I/O queues.
    let rig = Rig::with(Profile { stride_power: 9, ..inline() }, Settings { queues: 4, ..settings() }).expect("open");
    assert_eq!(rig.device.controller().queues(), 2);
    exercise(&Rig::new(Profile { stride_power: 9, blocks: 32 << 10, ..inline() }));
    rig.finish();
}

#[test]
fn without_interrupts_completions_are_polled() {
    let settings = Settings { interrupts: false, poll: Duration::ZERO, ..settings() };
    let rig = Rig::with(Profile { blocks: 32 << 10, ..Profile::default() }, settings).expect("open");
    assert!(!rig.device.controller().has_interrupts());
    exercise(&rig);
    rig.finish();
}

#[test]
fn more_requests_than_places_may_be_under_way() {
    bounded(|| {
        let rig = Rig::new(Profile { entries: 4, ..Profile::default() });
        let requests: Vec<_> = (0..64_u64)
            .map(|block| {
                let mut buf = rig.device.buffer(4096);
                buf.fill(block as u8);
                rig.device.submit(Io::Write { offset: block * 4096, buf })
            })
            .collect();
        for request in requests {
            request.wait().expect("write");
        }
        for block in 0..64 {
            assert_eq!(rig.emulator.block(block), [block as u8; 4096]);
        }
        rig.finish();
    });
}

#[test]
fn a_request_that_nobody_waits_for_is_done_all_the_same() {
    let rig = Rig::new(Profile::default());
    let mut buf = rig.device.buffer(4096);
    buf.fill(9);
    drop(rig.device.submit(Io::Write { offset: 4096, buf }));
    assert_eq!(rig.emulator.block(1), [9; 4096]);
    rig.finish();
}

#[test]
fn zeroes_and_discards_with_commands_of_their_own_and_without() {
    for optional in [true, false] {
        let profile =
            Profile { write_zeroes: optional, dataset_management: optional, block_power: 9, blocks: 1 << 18, ..inline() };
        let rig = Rig::new(profile);
        rig.device.write_at(0, &pattern(3, 2 * MIB)).expect("write");
        rig.device.write_zeroes(4096, MIB as u64 + 4096).expect("zeroes");
        let mut back = vec![1; 2 * MIB];
        rig.device.read_at(0, &mut back).expect("read");
        let data = pattern(3, 2 * MIB);
        assert_eq!(back[..4096], data[..4096]);
        assert!(back[4096..MIB + 8192].iter().all(|byte| *byte == 0));
        assert_eq!(back[MIB + 8192..], data[MIB + 8192..]);
        // Longer than one Write Zeroes command can name.
        rig.device.write_zeroes(0, 100 << 20).expect("zeroes");
        let refused = rig.device.discard(0, 100 << 20).err().map(|error| error.errno());
        assert_eq!(refused, (!optional).then_some(libc::EOPNOTSUPP));
        let io = rig.emulator.counts().io;
        assert_eq!((io.get(&8).copied(), io.get(&9).copied()), if optional { (Some(5), Some(1)) } else { (None, None) });
        rig.finish();
    }
}

#[test]
fn a_flush_survives_a_power_cut_and_nothing_is_said_of_one_without_a_cache() {
    for write_cache in [true, false] {
        let rig = Rig::new(Profile { write_cache, ..inline() });
        let data = pattern(7, MIB);
        rig.device.write_at(0, &data).expect("write");
        rig.device.flush().expect("flush");
        assert_eq!(rig.emulator.counts().io.get(&0).copied(), write_cache.then_some(1));
        rig.emulator.cut_power();
        let mut back = vec![0; MIB];
        rig.device.read_at(0, &mut back).expect("read");
        assert!(back == data);
        assert_eq!(rig.device.flush().is_err(), write_cache, "what was written since may be lost");
        rig.device.flush().expect("told once");
        rig.finish();
    }
}

#[test]
fn shutting_down_saves_the_cache_and_disables() {
    let rig = Rig::new(inline());
    rig.device.write_at(0, &pattern(1, 4096)).expect("write");
    let emulator = rig.emulator.clone();
    rig.finish();
    assert_eq!((emulator.counts().shutdowns, emulator.counts().enables), (1, 1));
    emulator.cut_power();
    assert_eq!(emulator.block(0), pattern(1, 4096));
}

#[test]
fn the_next_driver_finds_what_the_last_one_wrote() {
    let rig = Rig::new(Profile::default());
    let emulator = rig.emulator.clone();
    rig.device.write_at(8192, &pattern(5, 8192)).expect("write");
    // As after a crash: nobody shuts anything down.
    std::mem::forget(rig);
    assert_eq!(emulator.block(2), pattern(5, 8192)[..4096]);
    let rig = Rig::on(emulator, settings()).expect("a running controller is taken over");
    let mut back = vec![0; 8192];
    rig.device.read_at(8192, &mut back).expect("read");
    assert_eq!(back, pattern(5, 8192));
    rig.finish();
}

#[test]
fn requests_that_make_no_sense_never_reach_the_controller() {
    let rig = Rig::new(inline());
    let size = rig.device.info().size_bytes;
    for (offset, length) in [(size, 4096), (size - 4096, 8192), (512, 4096), (u64::MAX - 4095, 4096)] {
        let answer = rig.device.read_at(offset, &mut vec![0; length]);
        assert!(matches!(answer, Err(DeviceError::BadRange { .. })), "{offset}+{length}: {answer:?}");
    }
    assert!(rig.device.discard(100, 4096).is_err() && rig.device.write_zeroes(0, size + 4096).is_err());
    rig.device.discard(0, 0).expect("nothing to do");
    assert!(rig.emulator.counts().io.is_empty());
    rig.finish();
}

/// A window in the memory of a controller, from its second page on.
#[derive(Debug)]
struct LentWindow(Arc<ControllerMemory>);

impl LentWindow {
    const START: u64 = 4096;

    fn slice(self, offset: u64, length: u64) -> WindowSlice {
        WindowSlice { memory: Arc::new(self), offset, length }
    }
}

impl WindowMemory for LentWindow {
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), DeviceError> {
        assert!(self.0.bar().read(Self::START + offset, out));
        Ok(())
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        assert!(self.0.bar().write(Self::START + offset, data));
        Ok(())
    }
    fn controller_offset(&self, controller_memory: u64) -> Option<u64> {
        (controller_memory == self.0.id()).then_some(Self::START)
    }
}

#[test]
fn windows_in_the_controllers_own_memory_are_filled_and_drained_by_its_commands() {
    bounded(|| {
        let rig = Rig::new(Profile { cmb_bytes: 8 << 20, ..Profile::default() });
        let memory = rig.device.controller().lend_memory().expect("lend").expect("there is some");
        let address = rig.emulator.address().parse().expect("an address");
        let place = BusPlace { address, bar: 2, offset: 0, length: 8 << 20 };
        assert_eq!((memory.bar().length(), memory.bar().bus()), (8 << 20, place));
        let cmb = Cmb::of_controller(Arc::new(rig.device.clone()), memory.clone());
        assert_eq!(Aperture::info(&cmb).bus, Some(place));
        drop(cmb);
        let data = pattern(1, 3 * MIB);
        rig.device.write_at(0, &data).expect("write");
        let length = 3 * MIB as u64;
        let fill = || Io::FillWindow { offset: 0, window: LentWindow(memory.clone()).slice(8192, length) };
        rig.device.submit(fill()).wait().expect("fill");
        let mut seen = vec![0; 3 * MIB];
        assert!(memory.bar().read(4096 + 8192, &mut seen));
        assert!(seen == data);
        let drain = Io::DrainWindow { offset: 16 << 20, window: LentWindow(memory.clone()).slice(8192, length) };
        rig.device.submit(drain).wait().expect("drain");
        rig.device.read_at(16 << 20, &mut seen).expect("read");
        assert!(seen == data);
        // The buffer is where it was after a reset.
        assert!(memory.bar().write(0, &vec![0; 8 << 20]));
        rig.emulator.add_fault(FaultRule::once(Which::AnyIo, Fault::PowerCut));
        rig.device.flush().expect_err("told of the power cut");
        rig.device.write_at(0, &data).expect("write");
        rig.device.submit(fill()).wait().expect("fill");
        assert!(memory.bar().read(4096 + 8192, &mut seen));
        assert!(seen == data);
        rig.finish();
    });
}

#[test]
fn a_window_of_another_controller_is_copied() {
    let (rig, other) = (Rig::new(inline()), Rig::new(Profile { cmb_bytes: MIB as u64, ..inline() }));
    let memory = other.device.controller().lend_memory().expect("lend").expect("there is some");
    rig.device.write_at(0, &pattern(2, 8192)).expect("write");
    let fill = Io::FillWindow { offset: 0, window: LentWindow(memory.clone()).slice(0, 8192) };
    rig.device.submit(fill).wait().expect("fill");
    let mut seen = vec![0; 8192];
    assert!(memory.bar().read(LentWindow::START, &mut seen));
    assert_eq!(seen, pattern(2, 8192));
    rig.finish();
    other.finish();
}

#[test]
fn a_controller_without_memory_lends_none() {
    let rig = Rig::new(inline());
    assert!(rig.device.controller().lend_memory().expect("no error").is_none());
    rig.finish();
}

#[test]
fn a_persistent_region_keeps_what_was_written() {
    let emulator = EmulatedController::new(Profile { pmr_bytes: MIB as u64, ..inline() });
    let region = PersistentRegion::open(emulator.clone()).expect("open");
    assert_eq!((region.length(), region.is_read_only()), (MIB as u64, false));
    let address = emulator.address().parse().expect("an address");
    assert_eq!(region.bus(), BusPlace { address, bar: 4, offset: 0, length: MIB as u64 });
    region.write(4096, &pattern(1, 8192)).expect("write");
    region.make_durable().expect("durable");
    emulator.cut_power();
    assert!(matches!(region.make_durable(), Err(NvmeError::CacheLost)), "it was off");
    region.make_durable().expect("told once");
    let mut back = vec![0; 8192];
    region.read(4096, &mut back).expect("on again");
    assert_eq!(back, pattern(1, 8192));
    for _ in 1..MAX_REVIVALS {
        emulator.cut_power();
        // A read must not hide that writes before the power cut may be lost.
        assert_eq!(region.read(4096, &mut back).expect("on again"), Access::Revived);
        assert_eq!(back, pattern(1, 8192));
        assert!(matches!(region.make_durable(), Err(NvmeError::CacheLost)), "it was off");
        region.make_durable().expect("told once");
    }
    emulator.cut_power();
    assert!(matches!(region.read(4096, &mut back), Err(NvmeError::GivenUp(_))), "somebody keeps switching it off");
}

#[test]
fn a_region_whose_function_somebody_else_has_reset_may_have_lost_stores() {
    let emulator = EmulatedController::new(Profile { pmr_bytes: MIB as u64, ..inline() });
    let region = PersistentRegion::open(emulator.clone()).expect("open");
    let mut back = vec![0; 8192];
    for _ in 0..3 {
        region.write(4096, &pattern(1, 8192)).expect("write");
        region.make_durable().expect("durable");
        emulator.begin_reset();
        emulator.end_reset();
        // What was copied meanwhile may have gone nowhere, though the region is on as it was before.
        assert_eq!(region.read(4096, &mut back).expect("on again"), Access::Revived);
        assert_eq!(back, pattern(1, 8192));
        assert!(matches!(region.make_durable(), Err(NvmeError::CacheLost)), "nobody knows");
        region.make_durable().expect("told once");
    }
    emulator.begin_reset();
    assert_eq!(region.write(0, &pattern(2, 4096)).expect("reset once more"), Access::Revived);
    emulator.end_reset();
    drop(region);
    assert_rules_were_kept(&emulator);
}

#[test]
fn a_copy_that_fell_into_a_reset_counts_for_nobody() {
    let emulator = EmulatedController::new(Profile { pmr_bytes: MIB as u64, ..inline() });
    let region = Arc::new(PersistentRegion::open(emulator.clone()).expect("open"));
    region.write(4096, &pattern(1, 8192)).expect("write");
    emulator.begin_reset();
    // The reset ends and somebody else switches the region on again, before the copy is looked at.
    let (controller, other) = (emulator.clone(), region.clone());
    emulator.after_next_bar_read(move || {
        controller.end_reset();
        other.read(0, &mut [0; 64]).expect("on again");
    });
    let mut back = vec![0; 8192];
    region.read(4096, &mut back).expect("read");
    assert_eq!(back, pattern(1, 8192));
}

#[test]
fn a_persistent_region_that_is_pulled_out_is_gone() {
    let emulator = EmulatedController::new(Profile { pmr_bytes: MIB as u64, ..inline() });
    let region = PersistentRegion::open(emulator.clone()).expect("open");
    let mut back = vec![0; 8192];
    emulator.remove();
    assert!(region.read(4096, &mut back).is_err());
}
