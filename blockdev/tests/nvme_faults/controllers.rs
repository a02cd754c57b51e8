//! Controllers that are pulled out, at any moment, or answer noise.

use peerfs_blockdev::{BlockDevice, BlockDeviceExt};
use peerfs_nvme_emulator::{EmulatedController, Profile};

use crate::nvme::{Rig, assert_rules_were_kept, bounded, inline, pattern, settings};

/// Opens, writes, flushes, reads and shuts down. `true`: everything succeeded.
fn life_of_a_driver(emulator: &std::sync::Arc<EmulatedController>) -> bool {
    let Ok(rig) = Rig::on(emulator.clone(), settings()) else { return false };
    let data = pattern(8, 64 << 10);
    let written = rig.device.write_at(0, &data);
    let flushed = rig.device.flush();
    let mut back = vec![0; 64 << 10];
    let read = rig.device.read_at(0, &mut back);
    if written.is_ok() && read.is_ok() {
        assert!(back == data, "wrong bytes");
    }
    written.is_ok() && flushed.is_ok() && read.is_ok()
}

#[test]
fn removal_at_every_single_access() {
    bounded(|| {
        let mut left = 0;
        loop {
            let emulator = EmulatedController::new(Profile { accesses_left: Some(left), ..inline() });
            let whole = life_of_a_driver(&emulator);
            assert_rules_were_kept(&emulator);
            // Gone only while shutting down, or not at all.
            if whole {
                break;
            }
            left += 1;
        }
        assert!(left > 30, "only {left} accesses: the driver did nothing");
    });
}

#[test]
fn registers_that_answer_noise_now_and_then() {
    for seed in 0..60 {
        bounded(move || {
            let emulator = EmulatedController::new(Profile { seed, noisy_reads: 4, ..inline() });
            life_of_a_driver(&emulator);
            let bad: Vec<_> = emulator.dma_faults();
            assert!(bad.iter().all(|fault| fault.reason == peerfs_nvme_emulator::DmaFaultReason::Severed), "{bad:?}");
        });
    }
}
