//! A device for tests that can lose power: unflushed 512-byte sectors survive
//! or not by the roll of a seeded die.

use std::sync::Mutex;

use peerfs_blockdev::{BLOCK_BYTES, BlockDevice, DeviceError, DeviceInfo, EventSink, Io, IoBuf, Ticket};

use crate::sync::lock;

const SECTOR: usize = 512;
/// What discarded bytes read as.
pub const DISCARDED: u8 = 0xDD;

/// A small seeded generator (splitmix64).
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

#[derive(Debug)]
pub struct TestDevice(Mutex<State>);

#[derive(Debug)]
struct State {
    durable: Vec<u8>,
    /// Sectors written since the last flush, oldest first.
    unflushed: Vec<(usize, Vec<u8>)>,
    current: Vec<u8>,
    steps: u64,
    fail_from: Option<u64>,
    fail_count: u64,
}

impl TestDevice {
    pub fn new(size: u64) -> Self {
        Self::from_image(vec![0; size as usize])
    }

    pub fn from_image(image: Vec<u8>) -> Self {
        assert_eq!(image.len() % BLOCK_BYTES as usize, 0);
        TestDevice(Mutex::new(State {
            durable: image.clone(),
            unflushed: Vec::new(),
            current: image,
            steps: 0,
            fail_from: None,
            fail_count: 0,
        }))
    }

    /// Writes and flushes so far.
    pub fn steps(&self) -> u64 {
        lock(&self.0).steps
    }

    /// Lets `count` writes and flushes fail from step number `step` on.
    pub fn fail(&self, step: u64, count: u64) {
        let mut state = lock(&self.0);
        state.fail_from = Some(step);
        state.fail_count = count;
    }

    /// What a reader sees now.
    pub fn image(&self) -> Vec<u8> {
        lock(&self.0).current.clone()
    }

    /// What is left when the power fails now.
    pub fn crash_image(&self, rng: &mut Rng) -> Vec<u8> {
        let state = lock(&self.0);
        let mut image = state.durable.clone();
        let keep_percent = [0, 30, 70, 100][rng.below(4) as usize];
        for (offset, sector) in &state.unflushed {
            if rng.below(100) < keep_percent {
                image[*offset..offset + SECTOR].copy_from_slice(sector);
            }
        }
        image
    }

    fn put(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        let mut state = lock(&self.0);
        state.check(offset, data.len())?;
        state.step("write", offset, data.len() as u64)?;
        for (index, sector) in data.chunks(SECTOR).enumerate() {
            let at = offset as usize + index * SECTOR;
            state.unflushed.push((at, sector.to_vec()));
            state.current[at..at + SECTOR].copy_from_slice(sector);
        }
        Ok(())
    }

    fn get(&self, offset: u64, mut buf: IoBuf) -> Result<Option<IoBuf>, DeviceError> {
        let state = lock(&self.0);
        state.check(offset, buf.len())?;
        let at = offset as usize;
        let length = buf.len();
        buf.copy_from_slice(&state.current[at..at + length]);
        Ok(Some(buf))
    }
}

impl State {
    fn check(&self, offset: u64, length: usize) -> Result<(), DeviceError> {
        let end = offset.checked_add(length as u64);
        let aligned = offset.is_multiple_of(BLOCK_BYTES) && length.is_multiple_of(BLOCK_BYTES as usize);
        if !aligned || end.is_none_or(|end| end > self.current.len() as u64) {
            return Err(DeviceError::BadRange { device: "test".into(), offset, length: length as u64 });
        }
        Ok(())
    }

    fn step(&mut self, op: &'static str, offset: u64, length: u64) -> Result<(), DeviceError> {
        let step = self.steps;
        self.steps += 1;
        let failing = self.fail_from.is_some_and(|from| step >= from && step - from < self.fail_count);
        if failing {
            return Err(DeviceError::Io { device: "test".into(), op, offset, length, errno: libc::EIO });
        }
        Ok(())
    }
}

impl BlockDevice for TestDevice {
    fn info(&self) -> DeviceInfo {
        DeviceInfo { name: "test".into(), backend: "test", size_bytes: lock(&self.0).current.len() as u64, direct_io: true }
    }

    fn buffer(&self, length: usize) -> IoBuf {
        IoBuf::zeroed(length)
    }

    fn submit(&self, io: Io) -> Ticket {
        Ticket::ready(match io {
            Io::Read { offset, buf } => self.get(offset, buf),
            Io::Write { offset, buf } => self.put(offset, &buf).map(|()| Some(buf)),
            Io::FillWindow { offset, window } | Io::DrainWindow { offset, window } => {
                Err(DeviceError::BadRange { device: "test".into(), offset, length: window.length })
            }
        })
    }

    fn flush(&self) -> Result<(), DeviceError> {
        let mut state = lock(&self.0);
        state.step("flush", 0, 0)?;
        for (offset, sector) in std::mem::take(&mut state.unflushed) {
            state.durable[offset..offset + SECTOR].copy_from_slice(&sector);
        }
        Ok(())
    }

    /// Loses the content at once, and for good.
    fn discard(&self, offset: u64, length: u64) -> Result<(), DeviceError> {
        let mut state = lock(&self.0);
        state.check(offset, length as usize)?;
        let range = offset as usize..(offset + length) as usize;
        state.unflushed.retain(|(at, _)| !range.contains(at));
        state.current[range.clone()].fill(DISCARDED);
        state.durable[range].fill(DISCARDED);
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), DeviceError> {
        self.put(offset, &vec![0; length as usize])
    }

    fn subscribe(&self, _sink: EventSink) {}
}
