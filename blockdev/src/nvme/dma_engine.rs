//! A controller as DMA engine: it moves bytes between its namespace and windows of other devices, or buffers of ours.

use std::sync::Arc;
use std::time::Duration;

use peerfs_nvme_spec::{Command, IoOpcode};

use super::controller::{Controller, Settings};
use super::error::NvmeError;
use super::lease::{Lease, LeaseError};
use super::namespace::Namespace;
use super::port::Port;
use super::private_queue::PrivateQueue;
use super::vfio::VfioPort;
use crate::pci::PciAddress;
use crate::{BlockDevice, DeviceError, Window};

/// Admin commands are bring-up and the deletion of queues, which others may be waiting for: a controller that takes longer is
/// reset.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Most users that have a queue at one time.
const USERS: u16 = 16;

/// See the module's documentation. Cheap to clone.
#[derive(Debug, Clone)]
pub struct DmaEngine {
    namespace: Namespace,
}

impl DmaEngine {
    /// Namespace `id` of the controller at `address`, which must be bound to vfio-pci.
    ///
    /// # Errors
    /// What keeps the controller, or the namespace, from being used.
    pub fn open(address: PciAddress, id: u32) -> Result<Self, DeviceError> {
        let name = format!("nvme:{address}/ns{id}");
        let unusable = |reason: String| DeviceError::Unusable { device: name.clone(), reason };
        let port = VfioPort::open(address).map_err(|error| unusable(error.to_string()))?;
        DmaEngine::on(port, id, name.clone()).map_err(|error| unusable(error.to_string()))
    }

    /// Namespace `id` of the controller behind a port, as `name` for people.
    ///
    /// # Errors
    /// As [`DmaEngine::open`].
    pub fn on(port: Arc<dyn Port>, id: u32, name: String) -> Result<Self, NvmeError> {
        let settings = Settings { queues: 2, private_queues: USERS, admin_timeout: ADMIN_TIMEOUT, ..Settings::default() };
        let controller = Arc::new(Controller::open(port, settings)?);
        controller.watch_removal();
        Ok(DmaEngine { namespace: Namespace::open(controller, id, name, false)? })
    }

    /// For people.
    pub fn name(&self) -> String {
        self.namespace.info().name
    }

    /// Size of a logical block, bytes.
    pub fn block_bytes(&self) -> u64 {
        self.namespace.block_bytes()
    }

    /// Logical blocks that there are.
    pub fn blocks(&self) -> u64 {
        self.namespace.info().size_bytes / self.block_bytes()
    }

    /// Most bytes that one command may move: a multiple of 4096.
    pub fn max_transfer_bytes(&self) -> u64 {
        self.controller().max_transfer_bytes()
    }

    /// The controller.
    pub fn controller(&self) -> &Arc<Controller> {
        self.namespace.controller()
    }

    /// A queue for the transfers of one user, who may lose it at any time.
    ///
    /// # Errors
    /// There are as many users as there may be; what the controller answers.
    pub fn queue(&self) -> Result<Arc<PrivateQueue>, NvmeError> {
        self.controller().private_queue().map(Arc::new)
    }

    /// Puts a window within reach, for reading or for writing too, of commands of this queue.
    ///
    /// # Errors
    /// The window was cut, or is not where this controller could reach it.
    pub fn lease(&self, queue: &Arc<PrivateQueue>, window: Arc<dyn Window>, writable: bool) -> Result<Arc<Lease>, LeaseError> {
        Lease::new(self.clone(), queue.clone(), window, writable)
    }

    /// Reads whole logical blocks through main memory.
    ///
    /// # Errors
    /// The blocks do not exist; the controller.
    pub fn read(&self, first_block: u64, out: &mut [u8]) -> Result<(), DeviceError> {
        self.namespace.read_blocks(first_block, out)
    }

    /// Writes whole logical blocks through main memory.
    ///
    /// # Errors
    /// As [`DmaEngine::read`].
    pub fn write(&self, first_block: u64, data: &[u8]) -> Result<(), DeviceError> {
        self.namespace.write_blocks(first_block, data)
    }

    /// How often what was moved to the namespace, and was not durable yet, may have been lost.
    pub fn cache_losses(&self) -> u64 {
        self.controller().cache_losses()
    }

    /// Makes durable what was moved to the namespace since it had `cache_losses`.
    ///
    /// # Errors
    /// It may not be.
    pub fn sync(&self, cache_losses: u64) -> Result<(), DeviceError> {
        self.namespace.flush_since(cache_losses)
    }

    pub(super) fn command(&self, opcode: IoOpcode, first_block: u64, length: u64) -> Command {
        self.namespace.command_for(opcode, first_block, length)
    }
}
