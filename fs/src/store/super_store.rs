//! Keeps the two superblock copies of an open volume.

use std::sync::{Arc, Mutex};

use peerfs_blockdev::{BLOCK_BYTES, BlockDevice, BlockDeviceExt};

use super::StoreError;
use super::superblock::{ParseError, SUPERBLOCK_BLOCKS, Superblock};
use crate::sync::lock;

/// The current superblock and where its next version goes.
#[derive(Debug)]
pub struct SuperblockStore {
    device: Arc<dyn BlockDevice>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    current: Superblock,
    next_slot: u64,
    /// Above every generation that may be on the device, also from failed writes.
    next_generation: u64,
}

impl SuperblockStore {
    /// Reads the newest valid copy and checks it against the device.
    pub fn load(device: Arc<dyn BlockDevice>) -> Result<Self, StoreError> {
        let (current, slot) = load_newest(device.as_ref())?;
        let state = State { next_generation: current.generation.saturating_add(1), next_slot: 1 - slot, current };
        Ok(SuperblockStore { device, state: Mutex::new(state) })
    }

    /// Writes both copies, then flushes.
    pub fn create(device: Arc<dyn BlockDevice>, first: Superblock) -> Result<Self, StoreError> {
        for slot in 0..SUPERBLOCK_BLOCKS {
            device.write_at(slot * BLOCK_BYTES, &first.encode())?;
        }
        device.flush()?;
        let next_generation = first.generation + 1;
        let state = State { current: first, next_slot: 1, next_generation };
        Ok(SuperblockStore { device, state: Mutex::new(state) })
    }

    /// A copy of the current superblock.
    pub fn current(&self) -> Superblock {
        lock(&self.state).current.clone()
    }

    /// Changes the superblock. Durable when this returns. The copies are written one after the other,
    /// the staler one first, so that one is intact whatever happens.
    pub fn update(&self, change: impl FnOnce(&mut Superblock)) -> Result<Superblock, StoreError> {
        let mut state = lock(&self.state);
        let mut next = state.current.clone();
        change(&mut next);
        next.generation = state.next_generation;
        state.next_generation = state.next_generation.saturating_add(1);
        let bytes = next.encode();
        self.device.write_at(state.next_slot * BLOCK_BYTES, &bytes)?;
        self.device.flush()?;
        state.next_slot = 1 - state.next_slot;
        state.current = next.clone();
        match self.device.write_at(state.next_slot * BLOCK_BYTES, &bytes) {
            Ok(()) => self.device.flush()?,
            Err(error) => tracing::warn!(%error, "one of the two superblock copies is out of date"),
        }
        Ok(next)
    }
}

fn load_newest(device: &dyn BlockDevice) -> Result<(Superblock, u64), StoreError> {
    let info = device.info();
    let name = || info.name.clone();
    let mut newest: Option<(Superblock, u64)> = None;
    let mut failure = None;
    for slot in 0..SUPERBLOCK_BLOCKS.min(info.size_bytes / BLOCK_BYTES) {
        let mut block = vec![0; BLOCK_BYTES as usize];
        device.read_at(slot * BLOCK_BYTES, &mut block)?;
        match Superblock::parse(&block) {
            Ok(found) => {
                if newest.as_ref().is_none_or(|(best, _)| found.generation > best.generation) {
                    newest = Some((found, slot));
                }
            }
            Err(ParseError::Newer(format)) => {
                return Err(StoreError::NewerFormat { device: name(), format });
            }
            Err(ParseError::Corrupt(reason)) => failure = Some(reason),
            Err(ParseError::NoMagic) => {}
        }
    }
    let Some((found, slot)) = newest else {
        return Err(match failure {
            Some(reason) => StoreError::CorruptSuperblock { device: name(), reason },
            None => StoreError::NotPeerfs { device: name() },
        });
    };
    if info.size_bytes / BLOCK_BYTES < found.device_blocks {
        return Err(StoreError::Truncated {
            device: name(),
            recorded_bytes: found.device_blocks * BLOCK_BYTES,
            actual_bytes: info.size_bytes,
        });
    }
    Ok((found, slot))
}
