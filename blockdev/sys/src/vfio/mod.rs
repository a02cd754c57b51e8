//! VFIO: PCI devices driven from user space, and the IOMMU that confines them.
//!
//! A [`VfioContainer`] is one I/O address space. Opening a [`VfioDevice`] brings its
//! group into the container, so all devices of a container see the same
//! addresses: what one of them exports in a BAR, [`VfioContainer::map_dma`] makes
//! reachable for the others, and dropping the [`DmaMapping`] takes it away.
//!
//! The structures are our own few (`abi`) and not the crate vfio-bindings, which
//! has neither the ioctl numbers nor byte-level conversions.

mod abi;
mod container;
mod device;
mod dma;
mod error;
mod group;
mod ioctl;
mod iova;
mod irq;
mod region;
mod sysfs;

pub use container::{IommuInfo, VfioContainer};
pub use device::VfioDevice;
pub use dma::{DmaAccess, DmaMapping};
pub use error::VfioError;
pub use region::RegionInfo;
