//! The NVMe driver and a controller that lies: registers, identify pages and completions, any of them wrong.
//!
//! One life of a driver after the other: open, some requests, shut down. None may take long, and the controller may
//! never be led to memory that is not its own. What a write has written a read finds, if both succeed.

use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use peerfs_blockdev::nvme::{Controller, Namespace, PersistentRegion, Settings};
use peerfs_blockdev::{BLOCK_BYTES, BlockDevice, BlockDeviceExt, DeviceError, Io, IoBuf};
use peerfs_nvme_emulator::{Answer, DmaFaultReason, EmulatedController, Fault, FaultRule, Processing, Profile, Which};
use peerfs_nvme_spec::{AdminOpcode, IoOpcode, Status};

use super::{CALL_LIMIT, Tally};
use crate::Random;

/// No request is made after so long.
const LIFE: Duration = Duration::from_secs(1);

/// Longest transfer of a request, blocks.
const MOST_BLOCKS: u64 = 600;

/// Lets controllers that lie drive a driver for so many seconds.
///
/// # Errors
/// When a life hangs, panics, lets the controller reach foreign memory, or breaks a rule towards a controller that does
/// not; when nothing succeeds.
pub fn nvme(seed: u64, seconds: u64) -> Result<()> {
    println!("fuzzing nvme, seed {seed}");
    let (start, mut tally) = (Instant::now(), Tally::default());
    let mut random = Random::new(seed);
    let mut lives: u64 = 0;
    while start.elapsed().as_secs() < seconds {
        let life_seed = random.bits();
        let answers = bounded(life_seed).with_context(|| format!("life {lives}, seed {life_seed}"))?;
        answers.into_iter().for_each(|errno| tally.count(errno));
        lives += 1;
    }
    tally.print("nvme");
    println!("nvme: {lives} lives of a driver, {:.0} a second", lives as f64 / start.elapsed().as_secs_f64());
    ensure!(tally.answers.contains_key(&0), "nothing succeeded, so nothing was tested");
    Ok(())
}

/// A life that ends in time. Gives the answers to its requests.
fn bounded(seed: u64) -> Result<Vec<i32>> {
    let (done, end) = mpsc::channel();
    let life = std::thread::spawn(move || {
        let answers = Life::new(seed).run();
        done.send(()).ok();
        answers
    });
    if end.recv_timeout(CALL_LIMIT) == Err(mpsc::RecvTimeoutError::Timeout) {
        bail!("it hangs");
    }
    life.join().unwrap_or_else(|_| bail!("it panics"))
}

struct Life {
    random: Random,
    emulator: Arc<EmulatedController>,
    /// The controller means what its registers say.
    honest_registers: bool,
    /// Registers answer noise now and then.
    noise: bool,
    /// What is not flushed may be lost.
    power_fails: bool,
}

impl Life {
    fn new(seed: u64) -> Life {
        let mut random = Random::new(seed);
        let profile = profile(&mut random);
        let noise = profile.noisy_reads > 0;
        let honest_registers = profile.cap.is_none() && !noise;
        let emulator = EmulatedController::new(profile);
        let power_fails = random.one_in(8);
        if power_fails {
            emulator.add_fault(FaultRule::once(Which::AnyIo, Fault::PowerCut).after(random.below(6)));
        }
        for _ in 0..random.below(4) {
            emulator.add_fault(rule(&mut random));
        }
        Life { random, emulator, honest_registers, noise, power_fails }
    }

    fn run(mut self) -> Result<Vec<i32>> {
        let mut answers = Vec::new();
        // Noise may ask for two minutes to get ready, which the driver grants.
        if !self.noise && self.random.one_in(8) {
            let region = PersistentRegion::open(self.emulator.clone());
            answers.push(region.and_then(|region| region.read(0, &mut [0; 64])).map_or(libc::EIO, |_| 0));
        }
        let settings = Settings {
            private_queues: 0,
            queues: 1 + self.random.below(3) as u16,
            entries: 2 + self.random.below(20) as u16,
            io_timeout: Duration::from_millis(4),
            admin_timeout: Duration::from_millis(4),
            ready_timeout: Duration::from_millis(4),
            poll: Duration::from_micros(self.random.below(30)),
            interrupts: self.random.one_in(2),
        };
        match Controller::open(self.emulator.clone(), settings) {
            Ok(controller) => self.use_controller(Arc::new(controller), &mut answers),
            Err(error) => answers.push(error.errno()),
        }
        self.check()?;
        Ok(answers)
    }

    fn use_controller(&mut self, controller: Arc<Controller>, answers: &mut Vec<i32>) {
        if self.random.one_in(4) {
            answers.push(controller.lend_memory().map_or_else(|error| error.errno(), |_| 0));
        }
        match Namespace::open(controller, 1, "nvme:fuzz".into(), self.random.one_in(20)) {
            Ok(device) => {
                let start = Instant::now();
                for _ in 0..self.random.below(12) {
                    // Each completion of a controller without a voice costs a tick.
                    if start.elapsed() > LIFE {
                        break;
                    }
                    let answer = self.request(&device);
                    answers.push(answer.map_or_else(|error| error.errno(), |()| 0));
                }
            }
            Err(error) => answers.push(error.errno()),
        }
    }

    fn request(&mut self, device: &Namespace) -> Result<(), DeviceError> {
        let blocks = device.info().size_bytes / BLOCK_BYTES;
        let first = self.random.below(blocks);
        let count = 1 + self.random.below((blocks - first).min(MOST_BLOCKS));
        let (offset, length) = (first * BLOCK_BYTES, count * BLOCK_BYTES);
        match self.random.below(7) {
            0 => device.flush(),
            1 => device.write_zeroes(offset, length),
            2 => device.discard(offset, length),
            3 => device.submit(Io::Read { offset, buf: IoBuf::zeroed(length as usize) }).wait().map(drop),
            4 => device.read_at(offset, &mut vec![0; length as usize]),
            _ => self.write_and_look(device, offset, length as usize),
        }
    }

    fn write_and_look(&mut self, device: &Namespace, offset: u64, length: usize) -> Result<(), DeviceError> {
        let mut data = vec![0; length];
        self.random.fill(&mut data);
        device.write_at(offset, &data)?;
        let mut back = vec![0; length];
        device.read_at(offset, &mut back)?;
        // A power cut may come in between.
        assert!(self.power_fails || back == data, "{length} bytes at {offset} are not what was written");
        Ok(())
    }

    /// Nothing happened that must not happen, whatever the controller said.
    fn check(&self) -> Result<()> {
        let outside: Vec<_> =
            self.emulator.dma_faults().into_iter().filter(|fault| fault.reason != DmaFaultReason::Severed).collect();
        ensure!(outside.is_empty(), "the controller was led to foreign memory: {outside:?}");
        let violations = self.emulator.violations();
        ensure!(!self.honest_registers || violations.is_empty(), "the driver broke rules: {violations:?}");
        Ok(())
    }
}

/// Mostly a controller that could exist.
fn profile(random: &mut Random) -> Profile {
    let mut profile = Profile {
        seed: random.bits(),
        processing: if random.one_in(3) { Processing::Thread } else { Processing::Inline },
        entries: *random.pick(&[2, 3, 16, 256, 65536]),
        ready_timeout: random.bits() as u8,
        stride_power: if random.one_in(4) { random.below(16) as u8 } else { 0 },
        queues: *random.pick(&[0, 1, 2, 8]),
        vectors: random.below(5) as u16,
        max_transfer: *random.pick(&[0, 1, 2, 5, 7, 63, 255]),
        block_power: 9 + random.below(4) as u8,
        blocks: 1 + random.below(1 << 14),
        write_cache: random.one_in(2),
        write_zeroes: random.one_in(2),
        dataset_management: random.one_in(2),
        cmb_bytes: if random.one_in(3) { 1 << 20 } else { 0 },
        pmr_bytes: if random.one_in(3) { 1 << 20 } else { 0 },
        never_ready: random.one_in(40),
        never_stops: random.one_in(40),
        reset_fails: random.one_in(10),
        mute: random.one_in(20),
        spurious_interrupts: random.one_in(20),
        ..Profile::default()
    };
    if random.one_in(10) {
        profile.noisy_reads = 1 + random.below(40);
    }
    if random.one_in(10) {
        profile.cap = Some(random.bits() | 1 << 37);
    }
    if random.one_in(10) {
        profile.accesses_left = Some(random.below(80));
    }
    profile
}

/// A command that goes wrong, now or later, once or always.
fn rule(random: &mut Random) -> FaultRule {
    if random.one_in(3) {
        let which = Which::Admin(AdminOpcode::Identify);
        return timed(random, which, |random| Fault::Answer(answer(random)));
    }
    let which = match random.below(5) {
        0 => Which::AnyAdmin,
        1 => Which::Admin(AdminOpcode::SetFeatures),
        2 => Which::Io(*random.pick(&[IoOpcode::Read, IoOpcode::Write, IoOpcode::Flush])),
        _ => Which::AnyIo,
    };
    timed(random, which, fault)
}

fn timed(random: &mut Random, which: Which, fault: fn(&mut Random) -> Fault) -> FaultRule {
    let fault = fault(random);
    let rule = if random.one_in(6) { FaultRule::always(which, fault) } else { FaultRule::once(which, fault) };
    rule.after(random.below(6)).times(1 + random.below(4))
}

fn fault(random: &mut Random) -> Fault {
    match random.below(14) {
        0..=2 => Fault::Status(Status(random.bits() as u16 & 0x7FFF | 1)),
        3 => Fault::Lose,
        4 => Fault::Late,
        5 => Fault::Twice,
        6 => Fault::OtherId(random.bits() as u16),
        7 => Fault::OtherQueue(random.below(4) as u16),
        8 => Fault::OldPhase,
        9 => Fault::Delay(Duration::from_micros(random.below(8000))),
        10 => Fault::Fatal,
        11 => random.pick(&[Fault::Disable, Fault::Remove]).clone(),
        12 => Fault::ListFault,
        _ => Fault::Result(random.bits() as u32),
    }
}

fn answer(random: &mut Random) -> Answer {
    // Where pages have fields that the driver reads.
    const PLACES: [u16; 16] = [0, 1, 7, 24, 25, 26, 29, 77, 128, 130, 131, 132, 512, 513, 520, 525];
    match random.below(6) {
        0 => Answer::Filled(random.bits() as u8),
        1 => Answer::Noise(random.bits()),
        2 => Answer::Short(random.below(600) as u16),
        _ => {
            let patches = 1 + random.below(4);
            Answer::Patched((0..patches).map(|_| (*random.pick(&PLACES), random.bits() as u8)).collect())
        }
    }
}
