//! Power cuts at any moment: what a flush has vouched for is there afterwards.

use std::collections::BTreeSet;

use peerfs_blockdev::{BlockDevice, BlockDeviceExt};
use peerfs_nvme_emulator::{Fault, FaultRule, Profile, Random, Which};

use crate::nvme::{Rig, bounded, settings};

const BLOCKS: u64 = 24;
const CUTS: u64 = 4;
const REQUESTS: u64 = 300;

/// What a block may hold.
#[derive(Clone)]
struct Expected {
    possible: BTreeSet<u64>,
    /// What it holds, if no write since has failed or may have been lost.
    latest: Option<u64>,
}

fn block_of(stamp: u64) -> Vec<u8> {
    stamp.to_le_bytes().repeat(4096 / 8)
}

/// Requests and power cuts of a seed. Gives the number of flushes that succeeded and failed.
fn run(seed: u64, profile: Profile) -> (u64, u64) {
    let rig = Rig::with(Profile { seed, ..profile }, settings()).expect("open");
    let mut random = Random::new(seed);
    for _ in 0..CUTS {
        rig.emulator.add_fault(FaultRule::once(Which::AnyIo, Fault::PowerCut).after(random.below(REQUESTS - 2 * CUTS)));
    }
    let mut blocks = vec![Expected { possible: BTreeSet::from([0]), latest: Some(0) }; BLOCKS as usize];
    let (mut flushed, mut refused) = (0, 0);
    for number in 1..=REQUESTS {
        let at = random.below(BLOCKS);
        let expected = &mut blocks[at as usize];
        match random.below(6) {
            0 => match rig.device.flush() {
                Ok(()) => {
                    flushed += 1;
                    blocks.iter_mut().for_each(vouch);
                }
                Err(_) => {
                    refused += 1;
                    blocks.iter_mut().for_each(|expected| expected.latest = None);
                }
            },
            1 | 2 => {
                let mut back = vec![0; 4096];
                // A second cut may come while the first one's commands are sent again.
                if rig.device.read_at(at * 4096, &mut back).is_err() {
                    continue;
                }
                let stamp = u64::from_le_bytes(back[..8].try_into().expect("8 bytes"));
                assert_eq!(back, block_of(stamp));
                assert!(expected.possible.contains(&stamp), "{stamp} at {at}, not one of {:?}", expected.possible);
            }
            _ => {
                let written = rig.device.write_at(at * 4096, &block_of(number));
                expected.possible.insert(number);
                expected.latest = written.ok().map(|()| number);
            }
        }
    }
    assert_eq!(rig.recoveries(), CUTS, "every cut was seen");
    rig.finish();
    (flushed, refused)
}

/// The latest write cannot be lost any more.
fn vouch(expected: &mut Expected) {
    if let Some(latest) = expected.latest {
        expected.possible = BTreeSet::from([latest]);
    }
}

#[test]
fn what_was_flushed_survives_every_power_cut() {
    for profile in [crate::nvme::inline(), Profile::default()] {
        let (mut flushed, mut refused) = (0, 0);
        for seed in 0..40 {
            let profile = profile.clone();
            let counts = bounded(move || run(seed, profile));
            (flushed, refused) = (flushed + counts.0, refused + counts.1);
        }
        assert!(flushed > 0 && refused > 0, "{flushed} flushes succeeded, {refused} failed");
    }
}
