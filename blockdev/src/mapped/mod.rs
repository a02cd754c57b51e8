//! Volumes whose blocks live in memory that is mapped here: persistent memory, or the BAR of a device that keeps its
//! content (an NVMe Persistent Memory Region).
//!
//! [`BlockMemory`] is what such memory has to offer: copies in and out, and a barrier. [`MappedDevice`] makes a block
//! device of it, and [`MappedAperture`] an identity aperture: the blocks can be reached where they are.

mod aperture;
mod device;
mod window;

use std::fmt;
use std::sync::Arc;

use crate::nvme::PeerMemory;
use crate::{BlockDevice, BusPlace, DeviceError, PathKind, WindowContent};

pub use aperture::MappedAperture;
pub use device::MappedDevice;

/// Memory that holds blocks. All methods may be called from any thread, and several at once; offsets and lengths are in
/// bytes, of any alignment, and inside [`BlockMemory::length`], else the answer is an error.
pub trait BlockMemory: Send + Sync + fmt::Debug {
    /// Size, bytes.
    fn length(&self) -> u64;
    /// Copies out.
    ///
    /// # Errors
    /// The memory is gone or damaged there; `out` is then undefined.
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), DeviceError>;
    /// Copies in. Nothing outside the range changes, not even for a moment: a peer may be storing beside it.
    ///
    /// # Errors
    /// The memory is gone or damaged there, or read-only; any part may have been written.
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError>;
    /// Makes every write that completed before this call durable, by whatever thread.
    ///
    /// # Errors
    /// Some write may not be durable, and a later barrier cannot tell.
    fn barrier(&self) -> Result<(), DeviceError>;
    /// Makes what peers stored in this range before the call durable, which [`BlockMemory::write`] never heard of.
    ///
    /// # Errors
    /// As [`BlockMemory::barrier`].
    fn persist(&self, _offset: u64, _length: u64) -> Result<(), DeviceError> {
        self.barrier()
    }
    /// How bytes that a peer moves here are attested.
    fn path(&self) -> PathKind;
    /// Whole blocks of it as memory for DMA engines; `None`: it is in no device's BAR.
    fn peer_memory(&self, _offset: u64, _length: u64) -> Option<PeerMemory> {
        None
    }
    /// See [`crate::Window::content`].
    fn content(&self) -> WindowContent {
        WindowContent(0)
    }
    /// See [`crate::Window::has_kept`].
    fn has_kept(&self, _content: WindowContent) -> bool {
        true
    }
    /// Where it is on the bus; `None` if it is in no BAR.
    fn bus(&self) -> Option<BusPlace> {
        None
    }
}

/// A device of mapped memory, and the memory.
pub(crate) type DeviceAndMemory = (Arc<dyn BlockDevice>, Arc<dyn BlockMemory>);
