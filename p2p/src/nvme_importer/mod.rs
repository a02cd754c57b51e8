//! The importer `nvme`: a controller that the server owns moves a file's bytes to and from its namespace by DMA.
//!
//! Each copy has a session, a queue pair and, for each grant, a lease over its window, so the IOMMU enforces what was
//! decided: the controller reaches the blocks of the file, only while they are granted, and can write them only if the
//! grant is for writing. At a revocation nothing more is sent; what is outstanding has until the deadline; then its queue is
//! deleted, which leaves other copies alone. What did not count is moved again through main memory.

mod copy;
mod leases;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use peerfs_abi::ImporterFlags;
use peerfs_blockdev::nvme::DmaEngine;
use peerfs_blockdev::pci::PciAddress;

pub use copy::{CopyCall, CopyDirection, CopyError, FileBytes, copy};

use crate::types::Importer;

/// A controller as importer.
#[derive(Debug)]
pub struct NvmeImporter {
    name: String,
    address: PciAddress,
    engine: DmaEngine,
    in_flight: AtomicU64,
}

/// A transfer under way, counted.
struct InFlight(Arc<NvmeImporter>);

impl InFlight {
    fn count(importer: &Arc<NvmeImporter>) -> InFlight {
        importer.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(importer.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl NvmeImporter {
    /// Named after the address of the controller.
    pub fn new(address: PciAddress, engine: DmaEngine) -> Self {
        NvmeImporter { name: format!("nvme:{address}"), address, engine, in_flight: AtomicU64::new(0) }
    }

    /// `nvme:` and its address.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The controller's side of transfers.
    pub fn engine(&self) -> &DmaEngine {
        &self.engine
    }

    /// Transfers from device to device that are under way.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// As the engine of mappings sees it.
    pub fn importer(&self) -> Importer {
        Importer {
            name: self.name.clone(),
            flags: ImporterFlags::DYNAMIC | ImporterFlags::WRITE,
            dma_bits: 64,
            va_bits: 64,
            page_bytes: 4096,
            pci_address: Some(self.address),
            in_client: false,
        }
    }
}
