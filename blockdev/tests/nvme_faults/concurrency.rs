//! Many threads, random requests, random faults: every byte read was written there.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::Duration;

use peerfs_blockdev::nvme::{MAX_RECOVERIES, Settings};
use peerfs_blockdev::{BlockDevice, BlockDeviceExt};
use peerfs_nvme_emulator::{Fault, FaultRule, Profile, Random, Which};
use peerfs_nvme_spec::Status;

use crate::nvme::{Rig, bounded, settings};

const THREADS: u64 = 8;
const REQUESTS: u64 = 250;
const BLOCK: usize = 4096;
/// Blocks that one thread has for itself, and that all have together.
const OWN: u64 = 32;
const COMMON: u64 = 16;

/// What a thread's own blocks may hold: more than one value after a write that failed.
type Oracle = Vec<BTreeSet<u64>>;

/// A block full of one number.
fn block_of(stamp: u64) -> Vec<u8> {
    stamp.to_le_bytes().repeat(BLOCK / 8)
}

/// The number that a block is full of.
fn stamp_of(block: &[u8]) -> u64 {
    let stamp = u64::from_le_bytes(block[..8].try_into().expect("8 bytes"));
    assert!(block == block_of(stamp), "a block is of one write");
    stamp
}

struct Worker<'r> {
    rig: &'r Rig,
    random: Random,
    first: u64,
    oracle: Oracle,
    number: u64,
    written: u64,
    common: &'r Mutex<BTreeSet<u64>>,
}

impl Worker<'_> {
    fn run(mut self) {
        for _ in 0..REQUESTS {
            match self.random.below(10) {
                0 => drop(self.rig.device.flush()),
                1 => self.zero(),
                2 => self.common(),
                3..=6 => self.write(),
                _ => self.read(),
            }
        }
        for at in 0..OWN {
            self.check(at, 1);
        }
    }

    /// A range of own blocks: (first, count).
    fn range(&mut self) -> (u64, u64) {
        let at = self.random.below(OWN);
        (at, 1 + self.random.below((OWN - at).min(8)))
    }

    fn stamp(&mut self) -> u64 {
        self.written += 1;
        self.number << 32 | self.written
    }

    fn learn(&mut self, at: u64, stamps: &[u64], succeeded: bool) {
        for (possible, stamp) in self.oracle[at as usize..].iter_mut().zip(stamps) {
            if succeeded {
                possible.clear();
            }
            possible.insert(*stamp);
        }
    }

    fn write(&mut self) {
        let (at, count) = self.range();
        let stamps: Vec<u64> = (0..count).map(|_| self.stamp()).collect();
        let data: Vec<u8> = stamps.iter().flat_map(|stamp| block_of(*stamp)).collect();
        let done = self.rig.device.write_at((self.first + at) * BLOCK as u64, &data);
        self.learn(at, &stamps, done.is_ok());
    }

    fn zero(&mut self) {
        let (at, count) = self.range();
        let done = self.rig.device.write_zeroes((self.first + at) * BLOCK as u64, count * BLOCK as u64);
        self.learn(at, &vec![0; count as usize], done.is_ok());
    }

    fn read(&mut self) {
        let (at, count) = self.range();
        self.check(at, count);
    }

    fn check(&self, at: u64, count: u64) {
        let mut back = vec![0; count as usize * BLOCK];
        if self.rig.device.read_at((self.first + at) * BLOCK as u64, &mut back).is_err() {
            return;
        }
        for (block, possible) in back.chunks(BLOCK).zip(&self.oracle[at as usize..]) {
            let stamp = stamp_of(block);
            assert!(possible.contains(&stamp), "thread {} read {stamp:#x}, not one of {possible:x?}", self.number);
        }
    }

    /// Everybody writes and reads here at the same time.
    fn common(&mut self) {
        let at = THREADS * OWN + self.random.below(COMMON);
        let stamp = self.stamp();
        self.common.lock().expect("no panic").insert(stamp);
        drop(self.rig.device.write_at(at * BLOCK as u64, &block_of(stamp)));
        let mut back = vec![0; BLOCK];
        if self.rig.device.read_at(at * BLOCK as u64, &mut back).is_ok() {
            let seen = stamp_of(&back);
            assert!(self.common.lock().expect("no panic").contains(&seen), "nobody wrote {seen:#x} there");
        }
    }
}

/// Many small faults, and as many that need a reset as there may be.
fn add_faults(rig: &Rig, random: &mut Random) {
    let heavy =
        [Fault::Lose, Fault::Twice, Fault::OtherId(0x1000), Fault::Fatal, Fault::OldPhase, Fault::OtherQueue(9), Fault::Late];
    let light = [
        Fault::Quiet,
        Fault::Delay(Duration::from_millis(2)),
        Fault::Delay(Duration::from_micros(300)),
        Fault::Status(Status::INTERNAL_ERROR),
        Fault::Status(Status::NAMESPACE_NOT_READY),
        Fault::Status(Status::UNRECOVERED_READ_ERROR),
        Fault::ListFault,
    ];
    let commands = THREADS * REQUESTS;
    // A late completion makes for two resets.
    for _ in 0..MAX_RECOVERIES / 2 {
        let fault = heavy[random.below(heavy.len() as u64) as usize].clone();
        rig.emulator.add_fault(FaultRule::once(Which::AnyIo, fault).after(random.below(commands)));
    }
    for _ in 0..60 {
        let fault = light[random.below(light.len() as u64) as usize].clone();
        rig.emulator.add_fault(FaultRule::once(Which::AnyIo, fault).after(random.below(commands)));
    }
}

fn storm(seed: u64, profile: Profile, settings: Settings) {
    let rig = Rig::with(Profile { seed, ..profile }, settings).expect("open");
    let mut random = Random::new(seed);
    add_faults(&rig, &mut random);
    let common = Mutex::new(BTreeSet::from([0]));
    std::thread::scope(|scope| {
        for number in 0..THREADS {
            let worker = Worker {
                rig: &rig,
                random: Random::new(random.bits()),
                first: number * OWN,
                oracle: vec![BTreeSet::from([0]); OWN as usize],
                number: number + 1,
                written: 0,
                common: &common,
            };
            scope.spawn(move || worker.run());
        }
    });
    rig.finish();
}

fn seed() -> u64 {
    let seed = std::env::var("PEERFS_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    println!("seed {seed} (replay with PEERFS_SEED={seed})");
    seed
}

#[test]
fn a_storm_of_requests_and_faults_with_interrupts() {
    let seed = seed();
    bounded(move || (seed..seed + 3).for_each(|seed| storm(seed, Profile::default(), settings())));
}

#[test]
fn a_storm_of_requests_and_faults_polled() {
    let seed = seed();
    let settings = Settings { interrupts: false, ..settings() };
    bounded(move || (seed..seed + 3).for_each(|seed| storm(seed, Profile::default(), settings.clone())));
}

#[test]
fn a_storm_through_one_tiny_queue() {
    let seed = seed();
    let profile = Profile { queues: 1, entries: 3, max_transfer: 1, block_power: 9, blocks: 1 << 15, ..Profile::default() };
    bounded(move || (seed..seed + 2).for_each(|seed| storm(seed, profile.clone(), settings())));
}
