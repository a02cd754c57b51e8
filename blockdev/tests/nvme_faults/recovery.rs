//! Controllers that fail as a whole, and recovery that fails.

use std::time::Duration;

use peerfs_blockdev::nvme::{MAX_RECOVERIES, Settings};
use peerfs_blockdev::{BlockDevice, BlockDeviceExt, DeviceEvent, Io};
use peerfs_nvme_emulator::{DmaFaultReason, Fault, FaultRule, Profile, Which};
use peerfs_nvme_spec::{AdminOpcode, Status};

use crate::each_way;
use crate::nvme::{Rig, pattern};

/// With timeouts for what does not come.
fn hasty(profile: Profile, settings: Settings) -> Rig {
    opened(profile, Settings { interrupts: settings.interrupts, ..crate::hasty() })
}

fn opened(profile: Profile, settings: Settings) -> Rig {
    let rig = Rig::with(profile, settings).expect("open");
    rig.device.write_at(0, &pattern(6, 128 << 10)).expect("write");
    rig.device.flush().expect("flush");
    rig
}

fn assert_content(rig: &Rig) {
    let mut back = vec![0; 128 << 10];
    rig.device.read_at(0, &mut back).expect("read");
    assert!(back == pattern(6, 128 << 10), "wrong bytes");
}

/// Everything fails, at once, and was told so.
fn assert_given_up(rig: &Rig) {
    assert_eq!(rig.events().last(), Some(&DeviceEvent::Removed));
    let (enables, io) = (rig.emulator.counts().enables, rig.emulator.counts().io);
    assert!(rig.device.read_at(0, &mut [0; 4096]).is_err());
    assert!(rig.device.write_at(0, &[0; 4096]).is_err());
    assert!(rig.device.flush().is_err());
    assert!(rig.device.controller().identify_namespace(1).is_err());
    assert!(rig.device.controller().lend_memory().is_err());
    assert_eq!((rig.emulator.counts().enables, rig.emulator.counts().io), (enables, io), "it is left alone");
    assert_eq!(rig.events().iter().filter(|event| **event == DeviceEvent::Removed).count(), 1);
}

#[test]
fn a_fatal_status_under_load_resets() {
    each_way(|profile, settings| {
        let rig = opened(profile, settings);
        rig.emulator.add_fault(FaultRule::once(Which::AnyIo, Fault::Fatal));
        assert_content(&rig);
        assert_eq!(rig.events(), [DeviceEvent::Recovered]);
        rig.device.flush().expect("a reset keeps the cache");
        rig.finish();
    });
}

#[test]
fn a_controller_disabled_by_somebody_else_is_enabled_again_and_the_flush_tells() {
    each_way(|profile, settings| {
        let rig = opened(profile, settings);
        rig.emulator.add_fault(FaultRule::once(Which::AnyIo, Fault::Disable));
        assert_content(&rig);
        assert_eq!(rig.events(), [DeviceEvent::Recovered]);
        assert_eq!(rig.device.flush().expect_err("writes may be lost").errno(), libc::EIO);
        rig.device.flush().expect("told once");
        rig.finish();
    });
}

#[test]
fn a_power_cut_loses_nothing_that_was_flushed_and_is_told() {
    each_way(|profile, settings| {
        let rig = opened(profile, settings);
        rig.device.write_at(1 << 20, &[1; 64 << 10]).expect("write");
        // It fails before the flush that would have saved the last write.
        rig.emulator.add_fault(FaultRule::once(Which::AnyIo, Fault::PowerCut));
        assert_eq!(rig.device.flush().expect_err("writes may be lost").errno(), libc::EIO);
        assert_content(&rig);
        rig.device.flush().expect("told once");
        rig.finish();
    });
}

#[test]
fn removal_ends_everything() {
    each_way(|profile, settings| {
        let rig = opened(profile, settings);
        rig.emulator.add_fault(FaultRule::once(Which::AnyIo, Fault::Remove));
        let requests: Vec<_> =
            (0..8).map(|block| rig.device.submit(Io::Read { offset: block * 4096, buf: rig.device.buffer(4096) })).collect();
        let failed = requests.into_iter().map(|request| request.wait()).filter(Result::is_err).count();
        // A thread of the controller may complete some before.
        assert!(failed > 0);
        assert_eq!(rig.events(), [DeviceEvent::Removed]);
        assert_given_up(&rig);
        rig.finish();
    });
}

#[test]
fn a_controller_that_does_not_stop_is_reset_as_a_function() {
    each_way(|profile, settings| {
        let rig = hasty(profile, settings);
        rig.emulator.change(|profile| profile.never_stops = true);
        rig.emulator.add_fault(FaultRule::once(Which::AnyIo, Fault::Lose));
        assert_content(&rig);
        assert_eq!((rig.events(), rig.emulator.counts().resets), (vec![DeviceEvent::Recovered], 1));
        rig.emulator.change(|profile| profile.never_stops = false);
        rig.finish();
    });
}

#[test]
fn buffers_of_a_controller_that_nothing_stops_come_back_out_of_its_reach() {
    each_way(|profile, settings| {
        let rig = hasty(profile, settings);
        rig.emulator.change(|profile| (profile.never_stops, profile.reset_fails) = (true, true));
        let late = Duration::from_millis(1500);
        rig.emulator.add_fault(FaultRule::once(Which::AnyIo, Fault::Delay(late)).times(4));
        let requests: Vec<_> =
            (0..4).map(|block| rig.device.submit(Io::Read { offset: block * 4096, buf: rig.device.buffer(4096) })).collect();
        for request in requests {
            request.wait().expect_err("never in time");
        }
        assert_given_up(&rig);
        // The controller lives on, and comes back to the commands.
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while rig.emulator.dma_faults().is_empty() {
            assert!(std::time::Instant::now() < deadline, "the late commands never came");
            // An access lets a controller without a thread go on.
            peerfs_blockdev::nvme::Port::read_u32(&*rig.emulator, 0);
            std::thread::yield_now();
        }
        assert!(rig.emulator.dma_faults().iter().all(|fault| fault.reason == DmaFaultReason::Severed));
        rig.finish();
    });
}

#[test]
fn a_controller_that_does_not_start_again_is_given_up() {
    each_way(|profile, settings| {
        let rig = opened(profile, settings);
        rig.emulator.change(|profile| profile.never_ready = true);
        rig.emulator.add_fault(FaultRule::once(Which::AnyIo, Fault::Fatal));
        assert_eq!(rig.device.read_at(0, &mut [0; 4096]).expect_err("given up").errno(), libc::EIO);
        assert_eq!(rig.emulator.counts().resets, 1, "a reset of the function was tried");
        assert_given_up(&rig);
        rig.finish();
    });
}

#[test]
fn one_reset_too_many_in_a_minute_and_it_is_given_up() {
    each_way(|profile, settings| {
        let rig = hasty(profile, settings);
        rig.emulator.add_fault(FaultRule::always(Which::AnyIo, Fault::Lose));
        // Each command takes two resets with it.
        for _ in 0..=MAX_RECOVERIES / 2 {
            assert_eq!(rig.device.read_at(0, &mut [0; 4096]).expect_err("lost").errno(), libc::EIO);
        }
        assert_eq!(rig.recoveries(), 1 + MAX_RECOVERIES as u64);
        assert_eq!(rig.events().len(), 1 + MAX_RECOVERIES);
        assert_given_up(&rig);
        rig.finish();
    });
}

#[test]
fn trouble_in_the_middle_of_a_recovery_is_tried_once_more() {
    let admin = [
        (AdminOpcode::Identify, Fault::Lose),
        (AdminOpcode::SetFeatures, Fault::Status(Status::INTERNAL_ERROR)),
        (AdminOpcode::CreateCompletionQueue, Fault::Twice),
        (AdminOpcode::CreateSubmissionQueue, Fault::Fatal),
        (AdminOpcode::CreateSubmissionQueue, Fault::Disable),
    ];
    for (opcode, fault) in admin {
        println!("{opcode:?} {fault:?}");
        let rig = opened(crate::nvme::inline(), crate::hasty());
        rig.emulator.add_fault(FaultRule::once(Which::AnyIo, Fault::Fatal));
        rig.emulator.add_fault(FaultRule::once(Which::Admin(opcode), fault));
        assert_content(&rig);
        assert_eq!((rig.events(), rig.emulator.counts().resets), (vec![DeviceEvent::Recovered], 1));
        rig.finish();
    }
}

#[test]
fn what_is_not_the_same_after_a_reset_is_given_up() {
    type Change = fn(&mut Profile);
    let changes: [(&str, Change); 9] = [
        ("serial", |profile| profile.serial = "OTHER".into()),
        ("transfer limit", |profile| profile.max_transfer = 1),
        ("size", |profile| profile.blocks /= 2),
        ("larger", |profile| profile.blocks *= 2),
        ("format", |profile| profile.block_power = 9),
        ("metadata", |profile| profile.metadata_bytes = 8),
        ("inactive", |profile| profile.blocks = 0),
        ("queues", |profile| profile.queues = 1),
        ("queue entries", |profile| profile.entries = 4),
    ];
    for (what, change) in changes {
        println!("{what}");
        let rig = opened(crate::nvme::inline(), crate::nvme::settings());
        rig.emulator.change(change);
        rig.emulator.add_fault(FaultRule::once(Which::AnyIo, Fault::Fatal));
        assert_eq!(rig.device.read_at(0, &mut [0; 4096]).expect_err("another device").errno(), libc::EIO, "{what}");
        assert_given_up(&rig);
        rig.finish();
    }
}

#[test]
fn identify_during_a_recovery_waits_for_its_end() {
    each_way(|profile, settings| {
        let rig = hasty(profile, settings);
        rig.emulator.add_fault(FaultRule::once(Which::AnyIo, Fault::Lose));
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| assert_content(&rig));
            while !reader.is_finished() {
                let page = rig.device.controller().identify_namespace(1).expect("identify");
                assert_eq!(page.size.get(), 16 << 10);
            }
        });
        assert_eq!(rig.events(), [DeviceEvent::Recovered]);
        rig.finish();
    });
}

#[test]
fn a_lost_identify_resets_and_is_sent_again() {
    each_way(|profile, settings| {
        let rig = hasty(profile, settings);
        rig.emulator.add_fault(FaultRule::once(Which::Admin(AdminOpcode::Identify), Fault::Lose));
        rig.device.controller().identify_namespace(1).expect("after a reset");
        assert_eq!(rig.events(), [DeviceEvent::Recovered]);
        assert_content(&rig);
        rig.finish();
    });
}
