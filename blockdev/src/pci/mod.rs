//! NVMe controllers on the PCI bus.

mod address;

pub use address::{BadAddress, PciAddress};
