//! Opening what `nvme:BDF/ns1` and `nvme:BDF/pmr` name.

use std::sync::Arc;

use super::controller::{Controller, Settings};
use super::error::NvmeError;
use super::lent::ControllerMemory;
use super::namespace::Namespace;
use super::pmr::PersistentRegion;
use super::vfio::VfioPort;
use crate::DeviceError;
use crate::pci::PciAddress;

/// A namespace of the controller at `address`, and the memory that the controller lends, if it has any.
///
/// # Errors
/// The controller is not bound to vfio-pci, cannot be used, or has no such namespace.
pub fn open_namespace(
    address: PciAddress,
    id: u32,
    read_only: bool,
) -> Result<(Namespace, Option<Arc<ControllerMemory>>), DeviceError> {
    let name = format!("nvme:{address}/ns{id}");
    let unusable = |error: NvmeError| DeviceError::Unusable { device: name.clone(), reason: error.to_string() };
    let controller = Controller::open(port(address, &name)?, Settings::default()).map_err(unusable)?;
    let controller = Arc::new(controller);
    let memory = controller.lend_memory().unwrap_or_else(|error| {
        tracing::warn!(device = name, %error, "the controller memory buffer is not used");
        None
    });
    let namespace = Namespace::open(controller, id, name.clone(), read_only).map_err(unusable)?;
    Ok((namespace, memory))
}

/// The Persistent Memory Region of the controller at `address`.
///
/// # Errors
/// The controller is not bound to vfio-pci, has no such region, or it is not in order.
pub fn open_region(address: PciAddress) -> Result<PersistentRegion, DeviceError> {
    let name = format!("nvme:{address}/pmr");
    let port = port(address, &name)?;
    PersistentRegion::open(port).map_err(|error| DeviceError::Unusable { device: name, reason: error.to_string() })
}

fn port(address: PciAddress, name: &str) -> Result<Arc<VfioPort>, DeviceError> {
    VfioPort::open(&address.to_string())
        .map_err(|error| DeviceError::Unusable { device: name.to_owned(), reason: error.to_string() })
}
