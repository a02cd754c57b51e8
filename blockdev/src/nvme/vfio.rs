//! The way to a real controller: VFIO, so that the IOMMU keeps it to the memory it was given.

use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use peerfs_nvme_spec::register::{Cc, Csts, offset};
use peerfs_sys::{
    AccessError, Bar, BufferPool, DmaAccess, DmaMapping, DmaMemory, DmaRange, Interrupt, VfioContainer, VfioDevice, VfioError,
};

use super::port::{BarMemory, DmaBlock, PeerMemory, Port, Reach};
use super::removal::Removal;
use crate::pci::PciAddress;
use crate::{BusPlace, lock_wait};

/// How long somebody else may keep a device that is to be reset: longer than any reset takes.
const RESET_WAIT: Duration = Duration::from_secs(15);

/// How long a controller that is about to go may take to stop.
const STOP_WAIT: Duration = Duration::from_millis(500);

/// How long other devices may keep memory of one that is to be removed before that is said.
const LENT_WAIT: Duration = Duration::from_secs(10);

/// A controller bound to vfio-pci.
#[derive(Debug)]
pub struct VfioPort {
    address: PciAddress,
    // Dropped in this order: the device stops before its memory is unmapped.
    registers: Arc<Bar>,
    device: VfioDevice,
    container: Arc<VfioContainer>,
    mappings: Mutex<Vec<Weak<Severable>>>,
    removal: Arc<Removal>,
}

/// A mapping that may end before its owner lets go of it.
#[derive(Debug)]
struct Severable(Mutex<Option<DmaMapping>>);

impl VfioPort {
    /// Opens the controller at a PCI address, which must be bound to vfio-pci.
    ///
    /// # Errors
    /// What VFIO answers; the device has no BAR 0.
    pub fn open(address: PciAddress) -> Result<Arc<Self>, VfioError> {
        let container = VfioContainer::open()?;
        let device = VfioDevice::open(&container, &address.to_string())?;
        device.enable_memory_and_bus_master()?;
        let registers = device.bar(0)?.ok_or_else(|| VfioError::NotPci(address.to_string()))?;
        let removal = Arc::new(Removal::of(&device));
        let mappings = Mutex::default();
        let port = Arc::new(VfioPort { address, registers, device, container, mappings, removal: removal.clone() });
        removal.watch(&port);
        Ok(port)
    }

    /// The kernel wants the device back.
    pub(super) fn give_back(&self, told: impl FnOnce()) {
        if let Err(error) = stop(&self.registers) {
            tracing::warn!(device = self.address(), %error, "it could not be stopped before it is removed");
        }
        told();
        // Else another device would reach whatever takes the place of this one's memory. The kernel waits for us.
        while !matches!(lock_wait::until(Instant::now() + LENT_WAIT, || self.is_free()), Ok(Some(()))) {
            tracing::warn!(
                device = self.address(),
                "it is to be removed, and waits for other devices that still reach its memory"
            );
        }
        self.sever();
        match self.device.let_go() {
            Ok(()) => tracing::warn!(device = self.address(), "it was given back to the kernel, which removes it"),
            Err(error) => tracing::error!(device = self.address(), %error, "it cannot be given back: end the server"),
        }
    }

    /// No other device reaches its memory.
    fn is_free(&self) -> io::Result<Option<()>> {
        Ok((!self.device.is_lent()).then_some(()))
    }

    fn map(&self, range: DmaRange, access: DmaAccess) -> io::Result<Reach> {
        let mapping = self.container.map_dma(range, access).map_err(io::Error::other)?;
        let address = mapping.iova();
        let mapping = Arc::new(Severable(Mutex::new(Some(mapping))));
        let mut mappings = self.mappings.lock().unwrap_or_else(PoisonError::into_inner);
        mappings.retain(|mapping| mapping.strong_count() > 0);
        mappings.push(Arc::downgrade(&mapping));
        Ok(Reach { address, hold: Box::new(mapping) })
    }
}

impl Drop for VfioPort {
    fn drop(&mut self) {
        self.removal.end();
    }
}

impl Port for VfioPort {
    fn address(&self) -> &str {
        self.device.address()
    }

    fn read_u32(&self, offset: u64) -> u32 {
        if self.removal.has_begun() {
            return u32::MAX;
        }
        self.registers.read_u32(offset).unwrap_or(u32::MAX)
    }

    fn write_u32(&self, offset: u64, value: u32) {
        if !self.removal.has_begun() {
            // A device that is gone shows at the next read.
            let _gone = self.registers.write_u32(offset, value);
        }
    }

    fn read_u64(&self, offset: u64) -> u64 {
        if self.removal.has_begun() {
            return u64::MAX;
        }
        self.registers.read_u64(offset).unwrap_or(u64::MAX)
    }

    fn write_u64(&self, offset: u64, value: u64) {
        if !self.removal.has_begun() {
            let _gone = self.registers.write_u64(offset, value);
        }
    }

    fn registers_length(&self) -> u64 {
        self.registers.length()
    }

    fn allocate(&self, bytes: usize) -> io::Result<DmaBlock> {
        let memory = DmaMemory::zeroed(bytes)?;
        let reach = self.map(memory.dma_range(), DmaAccess::ReadWrite)?;
        Ok(DmaBlock { reach, memory })
    }

    fn attach(&self, pool: &Arc<BufferPool>) -> io::Result<Reach> {
        self.map(pool.dma_range(), DmaAccess::ReadWrite)
    }

    fn reach(&self, memory: &PeerMemory, writable: bool) -> io::Result<Reach> {
        let range = memory.bar.dma_range(memory.offset, memory.length);
        let range = range.ok_or_else(|| io::Error::other("the kernel does not map this part of the BAR"))?;
        self.map(range, if writable { DmaAccess::ReadWrite } else { DmaAccess::Read })
    }

    fn reserve(&self, bytes: u64) -> io::Result<u64> {
        self.container.reserve(bytes).map_err(io::Error::other)
    }

    fn interrupts(&self, count: u16) -> Vec<Arc<Interrupt>> {
        let available = self.device.interrupt_count().unwrap_or(0);
        let count = u32::from(count).min(available);
        if count == 0 {
            return Vec::new();
        }
        let interrupts = self.device.interrupts(count).unwrap_or_else(|error| {
            tracing::warn!(controller = self.address(), %error, "polling for completions");
            Vec::new()
        });
        interrupts.into_iter().map(Arc::new).collect()
    }

    fn reset(&self) -> io::Result<()> {
        if self.removal.has_begun() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let deadline = Instant::now() + RESET_WAIT;
        // The kernel does not wait for somebody else who is resetting the device, through sysfs for example.
        let in_turn = lock_wait::until(deadline, || match self.device.reset() {
            Ok(()) => Ok(Some(())),
            Err(_) if self.removal.has_begun() => Err(io::ErrorKind::NotFound.into()),
            Err(VfioError::Os { source, .. }) if source.raw_os_error() == Some(libc::EAGAIN) => Ok(None),
            Err(error) => Err(io::Error::other(error)),
        })?;
        in_turn.ok_or_else(|| io::Error::other(format!("it is in use by somebody else for {} s", RESET_WAIT.as_secs())))?;
        self.device.enable_memory_and_bus_master().map_err(io::Error::other)
    }

    fn on_removal(&self, told: Box<dyn Fn() + Send + Sync>) {
        self.removal.add(told);
    }

    fn sever(&self) {
        let mappings = std::mem::take(&mut *self.mappings.lock().unwrap_or_else(PoisonError::into_inner));
        for mapping in mappings.iter().filter_map(Weak::upgrade) {
            drop(mapping.0.lock().unwrap_or_else(PoisonError::into_inner).take());
        }
    }

    fn bar(&self, index: u8, offset: u64, length: Option<u64>) -> io::Result<Arc<dyn BarMemory>> {
        let bar = self.device.bar(index.into()).map_err(io::Error::other)?.ok_or(io::ErrorKind::NotFound)?;
        let length = length.unwrap_or(bar.length().saturating_sub(offset));
        match offset.checked_add(length) {
            Some(end) if length > 0 && end <= bar.length() => {
                Ok(Arc::new(BarPart { bar, place: BusPlace { address: self.address, bar: index, offset, length } }))
            }
            _ => Err(io::Error::other(format!(
                "BAR {index} of {} has {} bytes, not {offset}+{length}",
                self.address(),
                bar.length()
            ))),
        }
    }
}

/// Has a controller that is about to go stop, past everything that takes it for gone already.
fn stop(registers: &Bar) -> Result<(), AccessError> {
    registers.write_u32(offset::CC, Cc::DISABLED.0)?;
    let deadline = Instant::now() + STOP_WAIT;
    while Csts(registers.read_u32(offset::CSTS)?).is_ready() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Part of a BAR.
#[derive(Debug)]
struct BarPart {
    bar: Arc<Bar>,
    place: BusPlace,
}

impl BarPart {
    fn place(&self, offset: u64, length: usize) -> Option<u64> {
        let end = offset.checked_add(length as u64)?;
        (end <= self.place.length).then(|| self.place.offset + offset)
    }
}

impl BarMemory for BarPart {
    fn length(&self) -> u64 {
        self.place.length
    }

    fn bus(&self) -> BusPlace {
        self.place
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> bool {
        self.place(offset, out.len()).is_some_and(|place| self.bar.read(place, out).is_ok())
    }

    fn write(&self, offset: u64, data: &[u8]) -> bool {
        self.place(offset, data.len()).is_some_and(|place| self.bar.write(place, data).is_ok())
    }

    fn dma_range(&self, offset: u64, length: u64) -> Option<DmaRange> {
        let place = self.place(offset, usize::try_from(length).ok()?)?;
        self.bar.dma_range(place, length).ok()
    }
}
