//! Memory that devices reach, as long as the mapping lives.

use std::fmt;
use std::sync::Arc;

use crate::dma_range::DmaRange;

use super::abi;
use super::container::VfioContainer;
use super::error::VfioError;

/// What devices may do. There is no write-only: the kernel accepts it and devices read all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DmaAccess {
    /// Read.
    Read,
    /// Read and write.
    ReadWrite,
}

impl DmaAccess {
    pub(super) fn flags(self) -> u32 {
        match self {
            DmaAccess::Read => abi::DMA_READ,
            DmaAccess::ReadWrite => abi::DMA_READ | abi::DMA_WRITE,
        }
    }
}

/// A range of memory at addresses that the devices of a container use. It ends as a whole: the kernel has no partial unmapping.
///
/// A transfer under way when it ends may still land: drain the device first.
/// Dropping it unmaps; if that fails, the process is ended, because what the memory
/// is used for next would be in a device's reach.
#[must_use = "dropping it unmaps the memory"]
pub struct DmaMapping {
    container: Arc<VfioContainer>,
    /// `None` once it has ended.
    range: Option<DmaRange>,
    iova: u64,
    length: u64,
    /// Which of the container's IOMMUs it is in.
    generation: u64,
}

impl DmaMapping {
    pub(super) fn new(container: Arc<VfioContainer>, range: DmaRange, iova: u64, generation: u64) -> Self {
        DmaMapping { container, length: range.length(), range: Some(range), iova, generation }
    }

    /// Where devices see it.
    pub fn iova(&self) -> u64 {
        self.iova
    }

    /// Length, bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Ends it. On success no device reaches the memory any more.
    ///
    /// # Errors
    /// `Unmap` or `Os`: devices may still reach the memory, which is therefore never freed nor its addresses used again;
    /// only resetting the devices helps.
    pub fn unmap(mut self) -> Result<(), VfioError> {
        self.end()
    }

    fn end(&mut self) -> Result<(), VfioError> {
        let Some(range) = self.range.take() else { return Ok(()) };
        match self.container.unmap(self.iova, self.length, self.generation) {
            Ok(()) => {
                self.container.release(self.iova, self.length);
                Ok(())
            }
            Err(error) => {
                std::mem::forget(range);
                Err(error)
            }
        }
    }
}

impl Drop for DmaMapping {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("peerfs: memory stays in the reach of devices: {error}");
            std::process::abort();
        }
    }
}

impl fmt::Debug for DmaMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DmaMapping({:#x} bytes at {:#x})", self.length, self.iova)
    }
}
