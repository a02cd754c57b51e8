//! PCI functions in sysfs: the tree that they are in, NVMe controllers, and giving those to vfio-pci without harming what
//! uses them.
//!
//! A driver in user space needs the whole controller, and the kernel lets root take it from under a mounted filesystem.
//! So everything that could be lost is looked for first ([`Finding`]), nothing but the named device is touched, and what
//! was is restored at the end ([`Binding`]). Whoever uses a controller holds its [`DeviceLock`].
//!
//! Sources: Documentation/ABI/testing/sysfs-bus-pci, Documentation/driver-api/vfio.rst, drivers/nvme/host of Linux 6.12.

mod address;
mod bar;
mod binding;
mod config;
mod device;
mod error;
mod function;
mod group;
mod host;
mod lock;
mod mounts;
mod nvme;
mod translation;
mod tree;
mod usage;

pub use address::{BadAddress, PciAddress};
pub use bar::{Bar, BarKind};
pub use binding::{Binding, Reservation, unbind};
pub use config::{AccessControl, PortType};
pub use device::PciDevice;
pub use error::PciError;
pub use group::{GroupMember, IommuGroup};
pub use host::{Host, Kernel, LinuxKernel};
pub use lock::DeviceLock;
pub use nvme::{Controller, Namespace, controllers};
pub use translation::AddressSpace;
pub use tree::{Parent, Tree, TreeFunction};
pub use usage::{Finding, examine};
