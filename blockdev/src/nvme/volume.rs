//! Opening what `nvme:BDF/ns1` and `nvme:BDF/pmr` name.

use std::sync::Arc;

use super::controller::{Controller, Settings};
use super::error::NvmeError;
use super::lent::ControllerMemory;
use super::namespace::Namespace;
use super::pmr::PersistentRegion;
use super::region_memory::RegionMemory;
use super::vfio::VfioPort;
use crate::mapped::DeviceAndMemory;
use crate::pci::PciAddress;
use crate::{BlockMemory, DeviceError, DeviceEvents, DeviceInfo, MappedDevice, OpenMode};

/// A namespace of the controller at `address`, and the memory that the controller lends, if it has any.
///
/// # Errors
/// The controller is not bound to vfio-pci, cannot be used, or has no such namespace.
pub(crate) fn open_namespace(
    address: PciAddress,
    id: u32,
    read_only: bool,
) -> Result<(Namespace, Option<Arc<ControllerMemory>>), DeviceError> {
    let name = format!("nvme:{address}/ns{id}");
    let unusable = |error: NvmeError| DeviceError::Unusable { device: name.clone(), reason: error.to_string() };
    let controller = Controller::open(port(address, &name)?, Settings::default()).map_err(unusable)?;
    let controller = Arc::new(controller);
    controller.watch_removal();
    let memory = controller.lend_memory().unwrap_or_else(|error| {
        tracing::warn!(device = name, %error, "the controller memory buffer is not used");
        None
    });
    let namespace = Namespace::open(controller, id, name.clone(), read_only).map_err(unusable)?;
    Ok((namespace, memory))
}

/// The Persistent Memory Region of the controller at `address`: its blocks as a device, and as memory.
///
/// # Errors
/// The controller is not bound to vfio-pci, has no such region, or it is not in order, or read-only when it must not be.
pub(crate) fn open_region(address: PciAddress, mode: OpenMode) -> Result<DeviceAndMemory, DeviceError> {
    let name = format!("nvme:{address}/pmr");
    let port = port(address, &name)?;
    let unusable = |reason: String| DeviceError::Unusable { device: name.clone(), reason };
    let region = PersistentRegion::open(port.clone()).map_err(|error| unusable(error.to_string()))?;
    if region.is_read_only() && mode == OpenMode::ReadWrite {
        return Err(unusable("the region takes no more writes (PMRSTS.HSTS): mount it read-only".into()));
    }
    let events = Arc::new(DeviceEvents::default());
    let info = DeviceInfo { name: name.clone(), backend: "nvme", size_bytes: region.length(), direct_io: true };
    let memory = Arc::new(RegionMemory::new(name.clone(), region, mode, events.clone()));
    memory.watch_removal(&*port);
    let memory: Arc<dyn BlockMemory> = memory;
    Ok((Arc::new(MappedDevice::new(memory.clone(), info, mode, events)), memory))
}

fn port(address: PciAddress, name: &str) -> Result<Arc<VfioPort>, DeviceError> {
    VfioPort::open(address).map_err(|error| DeviceError::Unusable { device: name.to_owned(), reason: error.to_string() })
}
