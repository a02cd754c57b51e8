//! A piece of our address space that may be mapped for a device.

use std::any::Any;
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

/// Whole pages of DMA memory, of a buffer pool or of a BAR, kept alive until the last mapping of them is gone.
#[derive(Clone)]
pub struct DmaRange {
    start: NonNull<u8>,
    length: u64,
    _owner: Arc<dyn Any + Send + Sync>,
}

// SAFETY: an address range that belongs to the process; this type never touches the memory.
unsafe impl Send for DmaRange {}
// SAFETY: as above.
unsafe impl Sync for DmaRange {}

impl DmaRange {
    /// `owner` keeps `[start, start + length)` mapped, and makes no reference to it that a device's access would break.
    pub(crate) fn new(start: NonNull<u8>, length: u64, owner: Arc<dyn Any + Send + Sync>) -> Self {
        DmaRange { start, length, _owner: owner }
    }

    /// Length, bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Start, as the kernel takes it.
    pub(crate) fn address(&self) -> u64 {
        self.start.as_ptr().expose_provenance() as u64
    }
}

impl fmt::Debug for DmaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DmaRange({} bytes)", self.length)
    }
}
