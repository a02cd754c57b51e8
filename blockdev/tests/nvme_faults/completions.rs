//! Completions that do not come, or come wrong.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use peerfs_blockdev::nvme::Settings;
use peerfs_blockdev::{BlockDevice, BlockDeviceExt, DeviceEvent, Io};
use peerfs_nvme_emulator::{Fault, FaultRule, Profile, Which};
use peerfs_nvme_spec::IoOpcode;

use crate::each_way;
use crate::nvme::{Rig, bounded, pattern, settings};

const READ: Which = Which::Io(IoOpcode::Read);

/// The same settings, for a completion that does not come.
fn hasty(settings: Settings) -> Settings {
    Settings { interrupts: settings.interrupts, ..crate::hasty() }
}

/// A read that meets `fault`, `resets` resets, and the right bytes; then everything works.
fn recovers(profile: Profile, settings: Settings, fault: Fault, resets: usize) {
    println!("{fault:?}");
    let missing = matches!(fault, Fault::Lose | Fault::OldPhase | Fault::Delay(_)) && resets > 0;
    let rig = Rig::with(profile, if missing { hasty(settings) } else { settings }).expect("open");
    let data = pattern(4, 128 << 10);
    rig.device.write_at(0, &data).expect("write");
    rig.emulator.add_fault(FaultRule::once(READ, fault));
    for _ in 0..3 {
        let mut back = vec![0; 128 << 10];
        rig.device.read_at(0, &mut back).expect("read");
        assert!(back == data, "wrong bytes");
    }
    assert_eq!(rig.events(), vec![DeviceEvent::Recovered; resets]);
    assert_eq!(rig.emulator.counts().enables, 1 + resets as u64);
    rig.finish();
}

#[test]
fn a_lost_completion_resets_and_sends_again() {
    each_way(|profile, settings| recovers(profile, settings, Fault::Lose, 1));
}

#[test]
fn a_command_lost_twice_fails_and_the_next_works() {
    each_way(|profile, settings| {
        let rig = Rig::with(profile, hasty(settings)).expect("open");
        rig.device.write_at(0, &pattern(4, 4096)).expect("write");
        rig.emulator.add_fault(FaultRule::once(READ, Fault::Lose).times(2));
        let mut back = [0; 4096];
        assert_eq!(rig.device.read_at(0, &mut back).expect_err("lost").errno(), libc::EIO);
        assert_eq!(rig.events(), [DeviceEvent::Recovered, DeviceEvent::Recovered]);
        rig.device.read_at(0, &mut back).expect("the next");
        assert_eq!(back[..], pattern(4, 4096));
        rig.finish();
    });
}

#[test]
fn a_slow_command_is_waited_for() {
    each_way(|profile, settings| recovers(profile, settings, Fault::Delay(Duration::from_millis(50)), 0));
}

#[test]
fn a_command_that_is_too_slow_is_sent_again() {
    each_way(|profile, settings| recovers(profile, settings, Fault::Delay(Duration::from_secs(3600)), 1));
}

#[test]
fn a_completion_without_an_interrupt_is_found() {
    each_way(|profile, settings| recovers(profile, settings, Fault::Quiet, 0));
}

#[test]
fn a_controller_without_a_voice_is_slow_but_works() {
    each_way(|profile, settings| {
        let rig = Rig::with(Profile { mute: true, ..profile }, settings).expect("open");
        rig.device.write_at(0, &pattern(4, 1 << 20)).expect("write");
        let mut back = vec![0; 1 << 20];
        rig.device.read_at(0, &mut back).expect("read");
        assert!(back == pattern(4, 1 << 20));
        assert_eq!(rig.recoveries(), 0);
        rig.finish();
    });
}

#[test]
fn completing_twice_resets() {
    // The second one is found with the command after it.
    each_way(|profile, settings| recovers(Profile { queues: 1, ..profile }, settings, Fault::Twice, 1));
}

#[test]
fn unknown_ids_reset() {
    // Another slot, a slot that does not exist, another generation of the same slot.
    for bits in [1, 0x800, 0x1000] {
        for (profile, settings) in [(Profile::default(), settings()), (crate::nvme::inline(), settings())] {
            bounded(move || recovers(profile, settings, Fault::OtherId(bits), 1));
        }
    }
}

#[test]
fn a_completion_for_another_queue_resets() {
    each_way(|profile, settings| {
        let profile = Profile { queues: 1, ..profile };
        recovers(profile.clone(), settings.clone(), Fault::OtherQueue(0), 1);
        recovers(profile.clone(), settings.clone(), Fault::OtherQueue(2), 1);
        recovers(profile, settings, Fault::OtherQueue(u16::MAX), 1);
    });
}

#[test]
fn a_stale_phase_tag_is_a_lost_completion() {
    each_way(|profile, settings| recovers(profile, settings, Fault::OldPhase, 1));
}

#[test]
fn a_completion_of_an_earlier_life_is_nobodys() {
    each_way(|profile, settings| {
        let rig = Rig::with(profile, hasty(settings)).expect("open");
        rig.device.write_at(0, &pattern(4, 4096)).expect("write");
        rig.emulator.add_fault(FaultRule::once(READ, Fault::Late));
        let mut back = [0; 4096];
        assert_eq!(rig.device.read_at(0, &mut back).expect_err("two resets").errno(), libc::EIO);
        assert_eq!(back, [0; 4096], "not what a completion without a transfer left");
        assert_eq!(rig.recoveries(), 2);
        rig.device.read_at(0, &mut back).expect("the next");
        assert_eq!(back[..], pattern(4, 4096));
        rig.finish();
    });
}

#[test]
fn a_steady_stream_does_not_hide_a_lost_completion() {
    each_way(|profile, settings| {
        // Whoever looks polls until there is a completion, and there always is one soon.
        let settings = Settings { poll: Duration::from_secs(5), ..hasty(settings) };
        let rig = Rig::with(Profile { queues: 1, ..profile }, settings).expect("open");
        rig.emulator.add_fault(FaultRule::once(Which::Blocks(1000..1001), Fault::Lose));
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for thread in 0..3_u64 {
                let (rig, stop) = (&rig, &stop);
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        rig.device.read_at(thread * 4096, &mut [0; 4096]).expect("read");
                    }
                });
            }
            let start = Instant::now();
            rig.device.read_at(1000 * 4096, &mut [0; 4096]).expect("sent again");
            stop.store(true, Ordering::Relaxed);
            assert!(start.elapsed() < Duration::from_secs(10), "it took {:?}", start.elapsed());
        });
        assert_eq!(rig.events(), [DeviceEvent::Recovered]);
        rig.finish();
    });
}

#[test]
fn all_that_is_in_flight_at_a_reset_is_sent_once_more() {
    each_way(|profile, settings| {
        let rig = Rig::with(Profile { queues: 1, ..profile }, hasty(settings)).expect("open");
        rig.emulator.add_fault(FaultRule::once(Which::AnyIo, Fault::Lose).times(5));
        let requests: Vec<_> = (0..8_u64)
            .map(|block| {
                let mut buf = rig.device.buffer(4096);
                buf.fill(block as u8 + 1);
                rig.device.submit(Io::Write { offset: block * 4096, buf })
            })
            .collect();
        requests.into_iter().for_each(|request| drop(request.wait().expect("write")));
        for block in 0..8 {
            assert_eq!(rig.emulator.block(block), [block as u8 + 1; 4096]);
        }
        assert_eq!(rig.events(), [DeviceEvent::Recovered]);
        rig.finish();
    });
}
