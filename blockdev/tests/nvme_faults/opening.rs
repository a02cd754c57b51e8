//! Controllers and namespaces that cannot be used.

use std::sync::Arc;
use std::time::{Duration, Instant};

use peerfs_blockdev::nvme::{Controller, NvmeError};
use peerfs_blockdev::{BlockDevice, BlockDeviceExt, Io};
use peerfs_nvme_emulator::{Answer, EmulatedController, Fault, FaultRule, Profile, Which};
use peerfs_nvme_spec::{AdminOpcode, Status};

use crate::nvme::{Rig, assert_rules_were_kept, bounded, inline, pattern, settings};

/// The error of a driver that does not take the controller, which it left alone afterwards.
fn refused(profile: Profile, rules: Vec<FaultRule>) -> NvmeError {
    bounded(move || {
        let emulator = EmulatedController::new(profile);
        rules.into_iter().for_each(|rule| emulator.add_fault(rule));
        let error = Rig::on(emulator.clone(), settings()).err().expect("the driver refuses");
        assert_rules_were_kept(&emulator);
        error
    })
}

#[test]
fn capabilities_that_make_no_sense() {
    let good = 1 << 37 | 1 << 16 | 255;
    let with = |cap| refused(Profile { cap: Some(cap), ..inline() }, Vec::new());
    assert!(matches!(with(u64::MAX), NvmeError::Gone));
    assert!(matches!(with(0), NvmeError::Unsupported(_)), "no NVM command set");
    assert!(matches!(with(1 << 48 | good), NvmeError::Unsupported(_)), "pages of 8 KiB");
    assert!(matches!(with(15 << 48 | good), NvmeError::Unsupported(_)), "pages of 128 MiB");
    assert!(matches!(with(good & !0xFFFF), NvmeError::Nonsense(_)), "one entry");
    assert!(matches!(with(15 << 32 | good), NvmeError::Nonsense(_)), "doorbells outside of the BAR");
}

#[test]
fn a_controller_that_never_starts() {
    let start = Instant::now();
    assert!(matches!(refused(Profile { never_ready: true, ..inline() }, Vec::new()), NvmeError::Stuck { state: "ready", .. }));
    assert!(start.elapsed() < Duration::from_secs(10));
    let emulator = EmulatedController::new(Profile { never_ready: true, ..inline() });
    Controller::open(emulator.clone(), settings()).expect_err("never ready");
    assert_eq!((emulator.counts().enables, emulator.counts().shutdowns), (1, 0), "nor was it enabled by shutting it down");
}

#[test]
fn a_running_controller_that_does_not_stop() {
    for reset_fails in [false, true] {
        bounded(move || {
            let rig = Rig::new(inline());
            let emulator = rig.emulator.clone();
            rig.device.write_at(0, &pattern(1, 4096)).expect("write");
            emulator.change(|profile| (profile.never_stops, profile.reset_fails) = (true, reset_fails));
            // As after a crash: nobody shuts anything down.
            std::mem::forget(rig);
            let next = Rig::on(emulator.clone(), settings());
            assert_eq!(next.is_err(), reset_fails);
            if let Ok(next) = next {
                let mut back = [0; 4096];
                next.device.read_at(0, &mut back).expect("read");
                assert_eq!(back[..], pattern(1, 4096));
            }
            assert_rules_were_kept(&emulator);
        });
    }
}

#[test]
fn identify_pages_that_are_none() {
    let identify = |answer| vec![FaultRule::always(Which::Admin(AdminOpcode::Identify), Fault::Answer(answer))];
    for answer in [Answer::Filled(0), Answer::Filled(0xFF), Answer::Short(0), Answer::Short(512)] {
        let error = refused(inline(), identify(answer.clone()));
        assert!(matches!(error, NvmeError::Nonsense(_)), "{answer:?}: {error}");
    }
}

#[test]
fn identify_pages_of_noise_are_refused_or_believed_but_harm_nobody() {
    for seed in 0..300 {
        bounded(move || {
            let emulator = EmulatedController::new(inline());
            // The controller's page is right where the driver would refuse it at once.
            let sizes = Fault::Answer(Answer::Patched(vec![(77, seed as u8), (525, (seed >> 2) as u8), (520, seed as u8)]));
            emulator.add_fault(FaultRule::once(Which::Admin(AdminOpcode::Identify), sizes));
            emulator.add_fault(FaultRule::always(Which::Admin(AdminOpcode::Identify), Fault::Answer(Answer::Noise(seed))));
            if let Ok(rig) = Rig::on(emulator.clone(), settings()) {
                // Whatever it was told, it gets an answer.
                drop(rig.device.submit(Io::Read { offset: 0, buf: rig.device.buffer(8192) }).wait());
            }
            assert_rules_were_kept(&emulator);
        });
    }
}

#[test]
fn namespaces_that_cannot_be_used() {
    let kinds = [
        Profile { blocks: 0, ..inline() },
        Profile { metadata_bytes: 8, ..inline() },
        Profile { block_power: 8, ..inline() },
        Profile { block_power: 13, ..inline() },
        Profile { block_power: 63, ..inline() },
        Profile { block_power: 9, blocks: 7, ..inline() },
        Profile { block_power: 9, blocks: u64::MAX, ..inline() },
    ];
    for kind in kinds {
        let error = refused(kind.clone(), Vec::new());
        assert!(matches!(error, NvmeError::Unsupported(_)), "{kind:?}: {error}");
    }
    let controller = Arc::new(Controller::open(EmulatedController::new(inline()), settings()).expect("open"));
    for id in [0, 2, u32::MAX] {
        let error = peerfs_blockdev::nvme::Namespace::open(controller.clone(), id, "none".into(), false).expect_err("no such");
        assert!(matches!(error, NvmeError::Unsupported(_)));
    }
}

#[test]
fn queues_that_cannot_be_made() {
    let refuses = refused(Profile { refuses_queues: true, ..inline() }, Vec::new());
    assert!(matches!(refuses, NvmeError::Command { command: "create a completion queue", .. }), "{refuses}");
    for opcode in [AdminOpcode::SetFeatures, AdminOpcode::CreateSubmissionQueue] {
        let rule = FaultRule::always(Which::Admin(opcode), Fault::Status(Status::INVALID_FIELD));
        assert!(matches!(refused(inline(), vec![rule]), NvmeError::Command { .. }));
    }
}

#[test]
fn every_admin_command_may_be_lost_or_worse() {
    for at in 0..8 {
        for fault in [Fault::Lose, Fault::Fatal, Fault::Disable, Fault::Remove, Fault::OtherId(1), Fault::OtherQueue(3)] {
            bounded(move || {
                let emulator = EmulatedController::new(inline());
                emulator.add_fault(FaultRule::once(Which::AnyAdmin, fault).after(at));
                if let Ok(rig) = Rig::on(emulator.clone(), settings()) {
                    rig.device.read_at(0, &mut [0; 4096]).expect("a driver that opens works");
                }
                assert_rules_were_kept(&emulator);
            });
        }
    }
}

#[test]
fn a_memory_buffer_whose_base_is_not_accepted_is_not_used() {
    let rig = Rig::new(Profile { cmb_bytes: 1 << 20, rejects_cmb_base: true, ..inline() });
    assert!(matches!(rig.device.controller().lend_memory(), Err(NvmeError::Unsupported(_))));
    rig.device.write_at(0, &pattern(1, 8192)).expect("write");
    assert_eq!(rig.emulator.block(1), pattern(1, 8192)[4096..]);
    rig.finish();
}
