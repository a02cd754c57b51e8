//! Windows in the memory that a controller lends (its CMB).
//!
//! The memory is one BAR, so a window is a piece of it, used again after its end: the blocks of a new one are filled before
//! anybody gets it, and only they are within reach of DMA engines. The cut ends that.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use rangemap::RangeSet;

use crate::nvme::{Content, ControllerMemory, PeerMemory};
use crate::{BLOCK_BYTES, BusPlace, DeviceError, WindowMemory};

use super::memory::window_error;

/// Free and used pieces of a controller's memory.
#[derive(Debug)]
pub(super) struct LentSpace {
    memory: Arc<ControllerMemory>,
    free: Mutex<RangeSet<u64>>,
}

/// The memory of one window. Free again when dropped.
#[derive(Debug)]
pub(super) struct LentPiece {
    space: Arc<LentSpace>,
    range: Range<u64>,
    content: Content,
}

impl LentSpace {
    pub(super) fn new(memory: Arc<ControllerMemory>) -> Arc<Self> {
        let length = memory.bar().length() / BLOCK_BYTES * BLOCK_BYTES;
        let mut free = RangeSet::new();
        if length > 0 {
            free.insert(0..length);
        }
        Arc::new(LentSpace { memory, free: Mutex::new(free) })
    }

    /// Bytes in all.
    pub(super) fn capacity_bytes(&self) -> u64 {
        self.memory.bar().length() / BLOCK_BYTES * BLOCK_BYTES
    }

    /// Where pieces are on the bus.
    pub(super) fn bus(&self) -> BusPlace {
        BusPlace { length: self.capacity_bytes(), ..self.memory.bar().bus() }
    }

    /// A piece of `length` bytes (whole blocks), the smallest free run that is long enough.
    pub(super) fn take(self: &Arc<Self>, length: u64) -> Option<Arc<LentPiece>> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let fitting = free.iter().filter(|run| run.end - run.start >= length);
        let start = fitting.min_by_key(|run| run.end - run.start)?.start;
        let range = start..start + length;
        free.remove(range.clone());
        drop(free);
        Some(Arc::new(LentPiece { space: self.clone(), range, content: self.memory.content() }))
    }
}

impl LentPiece {
    fn place(&self, offset: u64, length: usize) -> io::Result<u64> {
        let end = offset.checked_add(length as u64).filter(|end| *end <= self.range.end - self.range.start);
        end.map(|_| self.range.start + offset).ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }

    /// The controller was reset, or was without power: what is there is not what was put there.
    pub(super) fn is_lost(&self) -> bool {
        !self.space.memory.has_kept(self.content)
    }

    /// A part of it as memory for DMA engines of other devices.
    pub(super) fn peer_memory(&self, offset: u64, length: u64) -> PeerMemory {
        PeerMemory { bar: self.space.memory.bar().clone(), offset: self.range.start + offset, length }
    }

    /// Copies out. What was lost is an error.
    pub(super) fn load(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let place = self.place(offset, out.len())?;
        let there = self.space.memory.bar().read(place, out);
        self.kept(there)
    }

    /// Copies in.
    pub(super) fn store(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let place = self.place(offset, data.len())?;
        let there = self.space.memory.bar().write(place, data);
        self.kept(there)
    }

    fn kept(&self, there: bool) -> io::Result<()> {
        match there && !self.is_lost() {
            true => Ok(()),
            false => Err(io::Error::from_raw_os_error(libc::ENODEV)),
        }
    }
}

impl Drop for LentPiece {
    fn drop(&mut self) {
        self.space.free.lock().unwrap_or_else(PoisonError::into_inner).insert(self.range.clone());
    }
}

impl WindowMemory for LentPiece {
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), DeviceError> {
        let length = out.len() as u64;
        self.load(offset, out).map_err(|err| window_error("read", offset, length, &err))
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        let length = data.len() as u64;
        self.store(offset, data).map_err(|err| window_error("write", offset, length, &err))
    }

    fn controller_offset(&self, controller_memory: u64) -> Option<u64> {
        (controller_memory == self.space.memory.id()).then_some(self.range.start)
    }
}
