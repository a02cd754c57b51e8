//! Buffers of real devices hold whatever was in them before.

use std::sync::Arc;

use peerfs_blockdev::{BlockDevice, DeviceError, DeviceInfo, EventSink, Io, IoBuf, Ticket};

use crate::store::testdev::TestDevice;

/// Hands out buffers full of junk, so that every byte nobody filled in shows.
#[derive(Debug)]
pub struct PoisonDevice(pub Arc<TestDevice>);

impl BlockDevice for PoisonDevice {
    fn info(&self) -> DeviceInfo {
        self.0.info()
    }
    fn buffer(&self, length: usize) -> IoBuf {
        let mut buf = self.0.buffer(length);
        buf.fill(0xee);
        buf
    }
    fn submit(&self, io: Io) -> Ticket {
        self.0.submit(io)
    }
    fn flush(&self) -> Result<(), DeviceError> {
        self.0.flush()
    }
    fn discard(&self, offset: u64, length: u64) -> Result<(), DeviceError> {
        self.0.discard(offset, length)
    }
    fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), DeviceError> {
        self.0.write_zeroes(offset, length)
    }
    fn subscribe(&self, sink: EventSink) {
        self.0.subscribe(sink);
    }
}
