//! A block device over memory. Bytes are copied in the caller's thread: a request is complete when `submit` returns.

use std::sync::{Arc, PoisonError, RwLock};

use crate::bounce;
use crate::{
    BLOCK_BYTES, BlockDevice, BlockMemory, DeviceError, DeviceEvents, DeviceInfo, EventSink, Io, IoBuf, OpenMode, Ticket,
};

/// What is copied under one lock, bytes: a multiple of a block.
const STRIPE_BYTES: u64 = 32 << 10;
/// Locks for all stripes: more than threads that copy at one time.
const LOCKS: usize = 256;

/// Blocks in memory.
///
/// Requests have no order among them, as on a disk. A read beside a write of the same block sees the block as it was
/// before or after it, never a mixture: each stripe of 32 KiB is copied under a lock. That holds for requests through
/// this device. What a peer stores in the memory itself at the same time has the grain of the peer's stores; and after a
/// power failure memory, unlike a disk, may have part of a 512-byte sector: 8 bytes are the unit there.
#[derive(Debug)]
pub struct MappedDevice {
    memory: Arc<dyn BlockMemory>,
    info: DeviceInfo,
    read_only: bool,
    events: Arc<DeviceEvents>,
    locks: Box<[RwLock<()>]>,
}

impl MappedDevice {
    /// A device of the whole blocks of `memory`, whatever size `info` says. Whoever owns the memory reports to `events`
    /// what happens to it.
    pub fn new(memory: Arc<dyn BlockMemory>, info: DeviceInfo, mode: OpenMode, events: Arc<DeviceEvents>) -> Self {
        let size_bytes = memory.length() / BLOCK_BYTES * BLOCK_BYTES;
        MappedDevice {
            memory,
            info: DeviceInfo { size_bytes, ..info },
            read_only: mode == OpenMode::ReadOnly,
            events,
            locks: (0..LOCKS).map(|_| RwLock::default()).collect(),
        }
    }

    fn transfer(&self, io: Io) -> Result<Option<IoBuf>, DeviceError> {
        self.info.check_range(io.offset(), io.length())?;
        if io.is_write() {
            self.check_writable(io.offset(), io.length())?;
        }
        match io {
            Io::Read { offset, mut buf } => self.read(offset, &mut buf).map(|()| Some(buf)),
            Io::Write { offset, buf } => self.write(offset, &buf).map(|()| Some(buf)),
            Io::FillWindow { offset, window } => bounce::fill_window(self, offset, &window).map(|()| None),
            Io::DrainWindow { offset, window } => bounce::drain_window(self, offset, &window).map(|()| None),
        }
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), DeviceError> {
        for (at, length) in stripes(offset, out.len() as u64) {
            let part = &mut out[(at - offset) as usize..][..length as usize];
            let _shared = self.lock(at).read().unwrap_or_else(PoisonError::into_inner);
            self.memory.read(at, part)?;
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        for (at, length) in stripes(offset, data.len() as u64) {
            let part = &data[(at - offset) as usize..][..length as usize];
            let _alone = self.lock(at).write().unwrap_or_else(PoisonError::into_inner);
            self.memory.write(at, part)?;
        }
        Ok(())
    }

    fn lock(&self, offset: u64) -> &RwLock<()> {
        &self.locks[(offset / STRIPE_BYTES) as usize % LOCKS]
    }

    fn check_writable(&self, offset: u64, length: u64) -> Result<(), DeviceError> {
        if !self.read_only {
            return Ok(());
        }
        Err(DeviceError::Io { device: self.info.name.clone(), op: "write", offset, length, errno: libc::EROFS })
    }
}

impl BlockDevice for MappedDevice {
    fn info(&self) -> DeviceInfo {
        self.info.clone()
    }

    fn buffer(&self, length: usize) -> IoBuf {
        IoBuf::zeroed(length)
    }

    fn submit(&self, io: Io) -> Ticket {
        Ticket::ready(self.transfer(io))
    }

    fn flush(&self) -> Result<(), DeviceError> {
        if self.read_only { Ok(()) } else { self.memory.barrier() }
    }

    fn discard(&self, offset: u64, length: u64) -> Result<(), DeviceError> {
        self.info.check_range(offset, length)?;
        self.check_writable(offset, length)?;
        // The memory is there in any case.
        Err(DeviceError::Io { device: self.info.name.clone(), op: "discard", offset, length, errno: libc::EOPNOTSUPP })
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), DeviceError> {
        self.info.check_range(offset, length)?;
        self.check_writable(offset, length)?;
        for (at, length) in stripes(offset, length) {
            self.write(at, &[0; STRIPE_BYTES as usize][..length as usize])?;
        }
        Ok(())
    }

    fn subscribe(&self, sink: EventSink) {
        self.events.subscribe(sink);
    }
}

/// Cuts a range where stripes begin: (offset, length) each.
fn stripes(offset: u64, length: u64) -> impl Iterator<Item = (u64, u64)> {
    let end = offset + length;
    let first = offset / STRIPE_BYTES;
    let last = if length == 0 { first } else { end.div_ceil(STRIPE_BYTES) };
    (first..last).map(move |stripe| {
        let start = (stripe * STRIPE_BYTES).max(offset);
        (start, ((stripe + 1) * STRIPE_BYTES).min(end) - start)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stripes_cover_a_range_once() {
        assert_eq!(stripes(0, 0).count(), 0);
        assert_eq!(stripes(4096, 0).count(), 0);
        assert_eq!(stripes(4096, 4096).collect::<Vec<_>>(), [(4096, 4096)]);
        let parts: Vec<_> = stripes(STRIPE_BYTES - 4096, STRIPE_BYTES + 8192).collect();
        assert_eq!(parts, [(STRIPE_BYTES - 4096, 4096), (STRIPE_BYTES, STRIPE_BYTES), (2 * STRIPE_BYTES, 4096)]);
    }
}
