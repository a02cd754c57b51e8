//! Transfers from device to device: one emulated controller moves bytes to and from windows in another's memory buffer.
//!
//! In every case: a window that was cut is out of reach when the cut returns, also for transfers under way, and what was
//! moved over a lease that had ended does not count, whatever the controller says.

use std::sync::Arc;
use std::time::{Duration, Instant};

use peerfs_blockdev::nvme::{Direction, DmaEngine, Lease, LeaseError, NvmeError, TransferError};
use peerfs_blockdev::{Aperture, BlockDeviceExt, Cmb, Run, Window, WindowSpec};
use peerfs_nvme_emulator::{DmaFault, EmulatedController, Fault, FaultRule, Processing, Profile, Which};
use peerfs_nvme_spec::{AdminOpcode, IoOpcode};

use crate::nvme::{Rig, assert_rules_were_kept, bounded, pattern};

const LENGTH: usize = 64 << 10;
/// Long enough that whoever does not wait for it is seen.
const SLOW: Duration = Duration::from_millis(300);
/// Where transfers go in the importer's namespace, logical block.
const PLACE: u64 = 256;

/// A storage device whose windows are in its own memory, and a controller that reaches them.
struct Pair {
    storage: Rig,
    cmb: Cmb,
    importer: Arc<EmulatedController>,
    engine: DmaEngine,
}

impl Pair {
    fn new() -> Pair {
        Pair::with(Profile::default())
    }

    fn with(importer: Profile) -> Pair {
        let storage = Rig::new(Profile { cmb_bytes: 1 << 20, write_cache: false, ..Profile::default() });
        let memory = storage.device.controller().lend_memory().expect("lend").expect("there is some");
        let cmb = Cmb::of_controller(Arc::new(storage.device.clone()), memory);
        let importer = EmulatedController::new(Profile { processing: Processing::Thread, queues: 64, ..importer });
        let engine = DmaEngine::on(importer.clone(), 1, "nvme:importer".into()).expect("the driver takes the controller");
        Pair { storage, cmb, importer, engine }
    }

    /// A window over blocks with the pattern of a seed.
    fn window(&self, device_offset: u64, seed: u64) -> Arc<dyn Window> {
        let length = LENGTH as u64;
        self.cmb.write_at(device_offset, &pattern(seed, LENGTH)).expect("write");
        let run = Run { window_offset: 0, device_offset, length };
        self.cmb.open_window(WindowSpec { owner: 1, length, runs: vec![run], valid_length: length }).expect("a window")
    }

    fn lease(&self, window: &Arc<dyn Window>, writable: bool) -> Arc<Lease> {
        if writable {
            window.set_writable();
        }
        let queue = self.engine.queue().expect("a queue");
        self.engine.lease(&queue, window.clone(), writable).expect("a lease")
    }

    fn device_holds(&self, device_offset: u64, seed: u64) -> bool {
        let mut seen = vec![0; LENGTH];
        self.cmb.read_at(device_offset, &mut seen).expect("read");
        seen == pattern(seed, LENGTH)
    }

    /// Puts the pattern of a seed where transfers into windows come from.
    fn prepare(&self, seed: u64) {
        self.engine.write(PLACE, &pattern(seed, LENGTH)).expect("write");
    }

    fn finish(self) {
        let Pair { storage, cmb, importer, engine } = self;
        drop((cmb, engine));
        assert_rules_were_kept(&importer);
        storage.finish();
    }
}

fn whole(lease: &Arc<Lease>, direction: Direction) -> Result<(), TransferError> {
    lease.start(direction, PLACE, 0, LENGTH as u64)?.finish()
}

fn window_bytes(window: &Arc<dyn Window>) -> Vec<u8> {
    let mut seen = vec![0; LENGTH];
    window.peer_read(0, &mut seen).expect("read");
    seen
}

/// Until a transfer that began by now would have landed.
fn outlast(began: Instant) {
    while began.elapsed() < SLOW * 2 {
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn bytes_go_both_ways() {
    bounded(|| {
        for power in [9, 12] {
            let pair = Pair::with(Profile { block_power: power, max_transfer: 2, ..Profile::default() });
            let window = pair.window(0, 1);
            let lease = pair.lease(&window, true);
            assert_eq!((lease.contiguous(4096), lease.contiguous(LENGTH as u64)), (LENGTH as u64 - 4096, 0));
            let step = pair.engine.max_transfer_bytes();
            assert_eq!(step, 16 << 10);
            let per_step = step / pair.engine.block_bytes();
            // All of it in flight at once, the last one no whole block.
            let parts = LENGTH as u64 / step;
            let length = |part| if part + 1 == parts { step - 1000 } else { step };
            let start = |part| lease.start(Direction::FromWindow, PLACE + part * per_step, part * step, length(part));
            let transfers: Vec<_> = (0..parts).map(|part| start(part).expect("sent")).collect();
            transfers.into_iter().for_each(|transfer| transfer.finish().expect("moved"));
            let mut seen = vec![0; LENGTH];
            pair.engine.read(PLACE, &mut seen).expect("read");
            assert_eq!(seen[..LENGTH - 4096], pattern(1, LENGTH)[..LENGTH - 4096]);

            pair.prepare(2);
            for part in 0..parts {
                let transfer = lease.start(Direction::ToWindow, PLACE + part * per_step, part * step, step);
                transfer.expect("sent").finish().expect("moved");
            }
            assert_eq!(window_bytes(&window), pattern(2, LENGTH));
            assert!(lease.stop() && lease.has_ended());
            assert!(matches!(whole(&lease, Direction::ToWindow), Err(TransferError::Revoked)));
            drop((lease, window));
            assert!(pair.device_holds(0, 2), "what the importer stored is written back");
            pair.finish();
        }
    });
}

#[test]
fn a_read_lease_cannot_be_written() {
    bounded(|| {
        let pair = Pair::new();
        pair.prepare(2);
        let window = pair.window(0, 1);
        let lease = pair.lease(&window, false);
        // As on real controllers, the status may say anything.
        let _any = whole(&lease, Direction::ToWindow);
        assert_eq!(window_bytes(&window), pattern(1, LENGTH));
        let blocked: Vec<DmaFault> = pair.importer.dma_faults();
        assert!(!blocked.is_empty() && blocked.iter().all(|fault| fault.write), "{blocked:?}");
        whole(&lease, Direction::FromWindow).expect("reading is allowed");
    });
}

#[test]
fn the_cut_waits_for_transfers_under_way_and_for_nobody_else() {
    bounded(|| {
        let pair = Pair::new();
        pair.prepare(2);
        let (window, others) = (pair.window(0, 1), pair.window(1 << 20, 3));
        let (lease, bystander) = (pair.lease(&window, true), pair.lease(&others, true));
        pair.importer.add_fault(FaultRule::always(Which::Io(IoOpcode::Read), Fault::Slow(SLOW)));
        let began = Instant::now();
        let transfer = lease.start(Direction::ToWindow, PLACE, 0, LENGTH as u64).expect("sent");
        let beside = bystander.start(Direction::ToWindow, PLACE, 0, LENGTH as u64).expect("sent");
        window.cut();
        assert!(lease.has_ended());
        window.write_back().expect("written back");
        assert!(pair.device_holds(0, 1));
        // The memory is somebody else's now.
        drop(window);
        let next = pair.window(2 << 20, 4);
        outlast(began);
        assert_eq!(window_bytes(&next), pattern(4, LENGTH), "a transfer landed after the cut");
        assert!(matches!(transfer.finish(), Err(TransferError::Revoked)));
        beside.finish().expect("a bystander's transfer goes on");
        assert_eq!(window_bytes(&others), pattern(2, LENGTH));
        assert_eq!(pair.engine.controller().recoveries(), 0);
        drop((lease, bystander, next, others));
        pair.finish();
    });
}

#[test]
fn a_lease_that_is_given_up_in_time_keeps_its_queue() {
    bounded(|| {
        let pair = Pair::new();
        pair.prepare(2);
        let window = pair.window(0, 1);
        let queue = pair.engine.queue().expect("a queue");
        let lease = pair.engine.lease(&queue, window.clone(), false).expect("a lease");
        pair.importer.add_fault(FaultRule::once(Which::Io(IoOpcode::Write), Fault::Slow(SLOW)));
        let transfer = lease.start(Direction::FromWindow, PLACE, 0, LENGTH as u64).expect("sent");
        assert!(!lease.stop(), "it is in use");
        assert!(matches!(whole(&lease, Direction::FromWindow), Err(TransferError::Revoked)), "nothing more is sent");
        assert!(matches!(transfer.finish(), Err(TransferError::Revoked)), "what ends after that does not count");
        assert!(lease.has_ended());
        window.cut();
        let again = pair.window(1 << 20, 5);
        let lease = pair.engine.lease(&queue, again.clone(), false).expect("a lease");
        whole(&lease, Direction::FromWindow).expect("the queue is as good as before");
        assert!(matches!(pair.engine.lease(&queue, window, false), Err(LeaseError::Revoked)));
        drop((lease, again, queue));
        pair.finish();
    });
}

#[test]
fn a_queue_that_cannot_be_deleted_costs_the_controller_a_reset() {
    bounded(|| {
        let pair = Pair::new();
        pair.prepare(2);
        let window = pair.window(0, 1);
        let lease = pair.lease(&window, true);
        pair.importer.add_fault(FaultRule::once(Which::Io(IoOpcode::Read), Fault::Slow(SLOW)));
        let refused = Fault::Status(peerfs_nvme_spec::Status::INTERNAL_ERROR);
        pair.importer.add_fault(FaultRule::once(Which::Admin(AdminOpcode::DeleteSubmissionQueue), refused));
        let began = Instant::now();
        let transfer = lease.start(Direction::ToWindow, PLACE, 0, LENGTH as u64).expect("sent");
        window.cut();
        assert_eq!(pair.engine.controller().recoveries(), 1);
        window.write_back().expect("written back");
        drop(window);
        let next = pair.window(2 << 20, 4);
        outlast(began);
        assert_eq!(window_bytes(&next), pattern(4, LENGTH), "a transfer landed after the cut");
        transfer.finish().expect_err("it does not count");
        let lease = pair.lease(&next, false);
        whole(&lease, Direction::FromWindow).expect("the controller works again");
        drop((lease, next));
        pair.finish();
    });
}

#[test]
fn a_reset_on_either_side_makes_a_transfer_not_count() {
    bounded(|| {
        for fault in [Fault::Fatal, Fault::Disable, Fault::Remove] {
            let pair = Pair::new();
            let window = pair.window(0, 1);
            let lease = pair.lease(&window, false);
            pair.importer.add_fault(FaultRule::once(Which::Io(IoOpcode::Write), fault.clone()));
            let failed = whole(&lease, Direction::FromWindow);
            assert!(matches!(failed, Err(TransferError::Controller(_))), "{fault:?}: {failed:?}");
            whole(&lease, Direction::FromWindow).expect_err("its queue has ended");
            drop(lease);
            if fault == Fault::Remove {
                assert!(matches!(pair.engine.queue(), Err(NvmeError::GivenUp(_))), "{:?}", pair.engine.queue());
            } else {
                whole(&pair.lease(&window, false), Direction::FromWindow).expect("a new one works");
            }
        }
        let pair = Pair::new();
        let window = pair.window(0, 1);
        let lease = pair.lease(&window, false);
        pair.importer.add_fault(FaultRule::once(Which::Io(IoOpcode::Write), Fault::Slow(SLOW)));
        let transfer = lease.start(Direction::FromWindow, PLACE, 0, LENGTH as u64).expect("sent");
        pair.storage.emulator.cut_power();
        let mut elsewhere = [0; 4096];
        pair.storage.device.read_at(8 << 20, &mut elsewhere).expect("sent once more");
        assert!(matches!(transfer.finish(), Err(TransferError::Revoked)), "the memory lost its content");
    });
}

#[test]
fn a_transfer_that_fell_into_a_reset_by_somebody_else_does_not_count() {
    bounded(|| {
        let pair = Pair::new();
        let window = pair.window(0, 1);
        let lease = pair.lease(&window, false);
        pair.storage.emulator.begin_reset();
        let transfer = lease.start(Direction::FromWindow, PLACE, 0, LENGTH as u64).expect("sent");
        let mut moved = vec![0; LENGTH];
        while moved != [0xFF; LENGTH] {
            pair.engine.read(PLACE, &mut moved).expect("read");
        }
        // Before anybody else meets the controller.
        pair.storage.emulator.end_reset();
        assert!(matches!(transfer.finish(), Err(TransferError::Revoked)), "it moved what no file holds");
    });
}

#[test]
fn queues_are_limited_and_come_back() {
    bounded(|| {
        let pair = Pair::new();
        let queues: Vec<_> = (0..16).map(|_| pair.engine.queue().expect("a queue")).collect();
        assert!(matches!(pair.engine.queue(), Err(NvmeError::NoQueueLeft(16))));
        drop(queues);
        assert!(pair.engine.queue().is_ok());
        pair.finish();

        let few = Pair::with(Profile::default());
        few.importer.change(|profile| profile.refuses_queues = true);
        assert!(matches!(few.engine.queue(), Err(NvmeError::Command { .. })));
        assert_eq!(few.engine.controller().recoveries(), 0, "nobody else suffers from that");
        few.finish();
    });
}
