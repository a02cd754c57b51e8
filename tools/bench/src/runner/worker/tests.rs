//! A worker on an engine that does what a test says.

use std::path::Path;
use std::time::{Duration, Instant};

use super::*;
use crate::Plan;
use crate::job_file::sections;

/// Bytes of each transfer.
const BLOCK: usize = 4096;

/// A file in memory, and what goes wrong with it.
#[derive(Default)]
struct Memory {
    bytes: Vec<u8>,
    buffer: Vec<u8>,
    /// How long the first transfer takes.
    first_takes: Duration,
    /// Writes arrive with a bit that is not theirs.
    damages: bool,
    /// Reads move half of what is asked for.
    is_short: bool,
    ended: Option<u64>,
    moved: u64,
}

impl Memory {
    fn new() -> Memory {
        Memory { bytes: vec![0; 16 * BLOCK], buffer: vec![0; BLOCK], ..Memory::default() }
    }
}

impl Engine for Memory {
    fn is_asynchronous(&self) -> bool {
        false
    }

    fn buffer(&mut self, _slot: usize) -> &mut [u8] {
        &mut self.buffer
    }

    fn start(&mut self, _slot: usize, step: &Step) -> Result<(), Error> {
        let began = Instant::now();
        while self.moved == 0 && began.elapsed() < self.first_takes {}
        let (at, mut length) = (step.offset as usize, step.length as usize);
        match step.direction {
            Direction::Read => {
                length >>= u32::from(self.is_short);
                self.buffer[..length].copy_from_slice(&self.bytes[at..at + length]);
            }
            Direction::Write => {
                self.bytes[at..at + length].copy_from_slice(&self.buffer[..length]);
                self.bytes[at] ^= u8::from(self.damages);
            }
        }
        self.moved += length as u64;
        self.ended = Some(length as u64);
        Ok(())
    }

    fn wait(&mut self, ended: &mut Vec<Ended>) -> Result<(), Error> {
        ended.extend(self.ended.take().map(|moved| Ended { slot: 0, moved: Ok(moved) }));
        Ok(())
    }

    fn sync(&mut self, _data_only: bool) -> Result<(), Error> {
        Ok(())
    }

    fn paths(&self) -> Option<PathBytes> {
        Some(PathBytes { fallback: self.moved, reasons: [("x", self.moved)].into(), ..PathBytes::default() })
    }
}

/// What a job with these options measures, on the first `blocks` blocks.
fn measured(options: &str, blocks: u64, engine: Memory) -> (Stats, Option<String>) {
    let sections = sections(Path::new("a.fio"), &format!("[a]\n{}", options.replace(' ', "\n"))).expect("lexes");
    let plan = Plan::new(&sections, false).expect("good");
    let length = blocks * BLOCK as u64;
    let region = Region { start: 0, length, total: length };
    let progress = Progress::new();
    let (stats, error) = Worker::new(&plan.jobs[0], 0, Box::new(engine), region, 1, &progress).run();
    (stats, error.map(|error| error.to_string()))
}

#[test]
fn what_was_written_until_the_runtime_ended_is_verified() {
    for damages in [false, true] {
        let engine = Memory { first_takes: Duration::from_millis(200), damages, ..Memory::new() };
        let (stats, error) = measured("rw=write verify=crc32c runtime=200ms", 8, engine);
        assert_eq!((stats.directions.write.transfers, stats.directions.read.transfers), (1, 1));
        assert_eq!(error.is_some_and(|said| said.contains("offset 0: it has no header")), damages);
    }
}

#[test]
fn paths_count_from_the_end_of_the_ramp() {
    let engine = Memory { first_takes: Duration::from_millis(1), ..Memory::new() };
    let (stats, error) = measured("rw=read ramp_time=1ms", 4, engine);
    assert_eq!((stats.directions.read.bytes, error), (3 * BLOCK as u64, None));
    let counted = 3 * BLOCK as u64;
    let expected = PathBytes { fallback: counted, reasons: [("x", counted)].into(), ..PathBytes::default() };
    assert_eq!(stats.paths, Some(expected));
}

#[test]
fn samples_count_the_time_of_their_direction() {
    let engine = Memory { first_takes: Duration::from_millis(600), ..Memory::new() };
    let (stats, _) = measured("rw=write verify=crc32c", 4, engine);
    let samples = |direction| stats.directions.get(direction).samples.bandwidth.count();
    assert_eq!((samples(Direction::Write), samples(Direction::Read)), (1, 0));
}

#[test]
fn a_block_that_is_read_in_part_is_not_verified() {
    for verify in ["crc32c", "pattern verify_pattern=0x00"] {
        let engine = Memory { is_short: true, ..Memory::new() };
        let (stats, error) = measured(&format!("rw=read verify={verify}"), 4, engine);
        let expected = "verify: a.0.0: the block of 4096 bytes at offset 0: only 2048 bytes of it could be read";
        assert_eq!(error.as_deref(), Some(expected), "{verify}");
        assert_eq!(stats.directions.read.short, 4);
    }
}
