//! A PCI device in our hands.

use std::fmt;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::bar::Bar;
use crate::interrupt::Interrupt;

use super::container::VfioContainer;
use super::error::{VfioError, os};
use super::group::Group;
use super::region::RegionInfo;
use super::{abi, ioctl, irq, sysfs};

/// Offset of the command register in configuration space (PCI 3.0, 6.2.2), bytes.
const PCI_COMMAND: u64 = 4;
const PCI_COMMAND_MEMORY: u16 = 1 << 1;
const PCI_COMMAND_MASTER: u16 = 1 << 2;

/// A device that VFIO has opened for us.
///
/// The kernel keeps it open until the object, its [`Bar`]s and their
/// [`crate::DmaRange`]s are gone; then it stops its DMA and resets it if it can. A
/// child process that a fork made before an exec keeps it open, too.
pub struct VfioDevice {
    address: String,
    file: Arc<File>,
    can_reset: bool,
    regions: Vec<RegionInfo>,
    config: RegionInfo,
    interrupts_enabled: Mutex<bool>,
    bars: Mutex<Vec<Weak<Bar>>>,
    _group: Arc<Group>,
}

impl VfioDevice {
    /// Opens the device at `address` (like 0000:01:00.0), bringing its group into the container.
    ///
    /// # Errors
    /// `BadAddress`, `NoDevice`, `NoIommuGroup`, `NotBound`, `NotViable`, `GroupInUse`, `NoInterruptRemapping`, `NotPci`, `Os`:
    /// each message says what to do.
    pub fn open(container: &Arc<VfioContainer>, address: &str) -> Result<Self, VfioError> {
        let group = container.group(sysfs::group_of(Path::new(sysfs::SYSFS), address)?)?;
        let file = group.device(address)?;
        let info = ioctl::device_info(&file).map_err(os(format!("ask VFIO about {address}")))?;
        if info.flags & abi::DEVICE_IS_PCI == 0 || info.num_regions <= abi::CONFIG_REGION {
            return Err(VfioError::NotPci(address.to_string()));
        }
        let region = |index| RegionInfo::of(&file, index).map_err(os(format!("ask VFIO for region {index} of {address}")));
        let regions = (0..abi::BARS).map(region).collect::<Result<Vec<_>, _>>()?;
        let config = region(abi::CONFIG_REGION)?;
        Ok(VfioDevice {
            address: address.to_string(),
            file: Arc::new(file),
            can_reset: info.flags & abi::DEVICE_CAN_RESET != 0,
            regions,
            config,
            interrupts_enabled: Mutex::new(false),
            bars: Mutex::default(),
            _group: group,
        })
    }

    /// Its PCI address.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Its six BARs; those that are not there have length 0.
    pub fn regions(&self) -> &[RegionInfo] {
        &self.regions
    }

    /// Maps a BAR, as far as the kernel allows; `None` if there is none with that number.
    ///
    /// # Errors
    /// `Os`: what mmap(2) answers.
    pub fn bar(&self, index: usize) -> Result<Option<Arc<Bar>>, VfioError> {
        let Some(region) = self.regions.get(index).filter(|region| region.length > 0 && region.accessible) else {
            return Ok(None);
        };
        let bar = Bar::of_device(self.file.clone(), region.start, region.length, &region.mappable);
        let bar = bar.map_err(os(format!("map BAR {index} of {}", self.address)))?;
        let mut bars = self.bars.lock().unwrap_or_else(PoisonError::into_inner);
        bars.retain(|bar| bar.strong_count() > 0);
        bars.push(Arc::downgrade(&bar));
        Ok(Some(bar))
    }

    /// Memory of it may be mapped for another device.
    pub fn is_lent(&self) -> bool {
        self.bars.lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(Weak::upgrade).any(|bar| bar.is_lent())
    }

    /// Gives it back to the kernel, which waits for that when a device is to be removed, while this object and its [`Bar`]s
    /// are still in use: they find the device gone.
    ///
    /// # Errors
    /// `Os`: what mmap(2), open(2) or dup2(2) answer.
    pub fn let_go(&self) -> Result<(), VfioError> {
        let named = || os(format!("let go of {}", self.address));
        for bar in self.bars.lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(Weak::upgrade) {
            bar.let_go().map_err(named())?;
        }
        let nothing = File::open("/dev/null").map_err(named())?;
        // SAFETY: both are open descriptors; ours keeps its number and means /dev/null from now on, at which every further
        // request for the device fails.
        match unsafe { libc::dup3(nothing.as_raw_fd(), self.file.as_raw_fd(), libc::O_CLOEXEC) } {
            -1 => Err(named()(std::io::Error::last_os_error())),
            _ => Ok(()),
        }
    }

    /// Reads `N` bytes of configuration space at `offset`, little-endian as they lie there.
    ///
    /// # Errors
    /// `Os`: what pread(2) answers.
    pub fn read_config<const N: usize>(&self, offset: u64) -> Result<[u8; N], VfioError> {
        let mut bytes = [0; N];
        let read = self.file.read_exact_at(&mut bytes, self.config.start.saturating_add(offset));
        read.map_err(os(format!("read configuration space of {} at {offset:#x}", self.address)))?;
        Ok(bytes)
    }

    /// Writes to configuration space at `offset`.
    ///
    /// # Errors
    /// `Os`: what pwrite(2) answers.
    pub fn write_config(&self, offset: u64, bytes: &[u8]) -> Result<(), VfioError> {
        let written = self.file.write_all_at(bytes, self.config.start.saturating_add(offset));
        written.map_err(os(format!("write configuration space of {} at {offset:#x}", self.address)))
    }

    /// Lets it answer at its BARs and do DMA.
    ///
    /// # Errors
    /// As [`VfioDevice::read_config`].
    pub fn enable_memory_and_bus_master(&self) -> Result<(), VfioError> {
        self.change_command(|command| command | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER)
    }

    /// Forbids it to start DMA. What it has under way may still land: this is no way to drain it.
    ///
    /// # Errors
    /// As [`VfioDevice::read_config`].
    pub fn disable_bus_master(&self) -> Result<(), VfioError> {
        self.change_command(|command| command & !PCI_COMMAND_MASTER)
    }

    fn change_command(&self, change: impl FnOnce(u16) -> u16) -> Result<(), VfioError> {
        let command = u16::from_le_bytes(self.read_config(PCI_COMMAND)?);
        self.write_config(PCI_COMMAND, &change(command).to_le_bytes())
    }

    /// VFIO can reset it.
    pub fn can_reset(&self) -> bool {
        self.can_reset
    }

    /// Resets it. Afterwards it does no DMA; its configuration space is as before.
    ///
    /// # Errors
    /// `NoReset`, `Os`.
    pub fn reset(&self) -> Result<(), VfioError> {
        match self.can_reset {
            true => ioctl::reset(&self.file).map_err(os(format!("reset {}", self.address))),
            false => Err(VfioError::NoReset(self.address.clone())),
        }
    }

    /// How many MSI-X interrupts it has.
    ///
    /// # Errors
    /// `Os`.
    pub fn interrupt_count(&self) -> Result<u32, VfioError> {
        irq::count(&self.file, abi::MSIX_IRQ).map_err(os(format!("ask for the interrupts of {}", self.address)))
    }

    /// Enables its first `count` MSI-X interrupts, in place of any enabled before. They are off when the device is closed.
    ///
    /// # Errors
    /// `Interrupts` when it has fewer; `Os`.
    pub fn interrupts(&self, count: u32) -> Result<Vec<Interrupt>, VfioError> {
        let available = self.interrupt_count()?;
        if count > available || count == 0 {
            return Err(VfioError::Interrupts { address: self.address.clone(), wanted: count, available });
        }
        let named = || os(format!("enable {count} interrupts of {}", self.address));
        let mut enabled = self.interrupts_enabled.lock().unwrap_or_else(PoisonError::into_inner);
        if *enabled {
            // Others come only after those that are enabled are off: the kernel refuses to add any, and to switch off none.
            irq::disable(&self.file, abi::MSIX_IRQ).map_err(named())?;
            *enabled = false;
        }
        let interrupts = irq::enable(&self.file, abi::MSIX_IRQ, count).map_err(named())?;
        *enabled = true;
        Ok(interrupts)
    }

    /// Has the kernel notify interrupt `number` as if the device had sent it: a test of the way from there to us.
    ///
    /// # Errors
    /// `Os`: EINVAL when it is not enabled.
    pub fn simulate_interrupt(&self, number: u32) -> Result<(), VfioError> {
        irq::simulate(&self.file, abi::MSIX_IRQ, number).map_err(os(format!("simulate interrupt {number} of {}", self.address)))
    }

    /// Notified, again and again, while the kernel wants the device back (it is being removed, or unbound): close it.
    /// Takes the place of one asked for before.
    ///
    /// # Errors
    /// `Os`.
    pub fn removal_request(&self) -> Result<Interrupt, VfioError> {
        self.message(abi::REQUEST_IRQ, "removal")
    }

    /// Notified when the device has reported an uncorrectable error (PCIe AER): it has to be reset.
    /// Takes the place of one asked for before.
    ///
    /// # Errors
    /// `Os`: EINVAL for a device that is not PCI Express.
    pub fn error_message(&self) -> Result<Interrupt, VfioError> {
        self.message(abi::ERROR_IRQ, "error")
    }

    fn message(&self, index: u32, what: &str) -> Result<Interrupt, VfioError> {
        let interrupts = irq::enable(&self.file, index, 1).map_err(os(format!("ask for {what} messages of {}", self.address)))?;
        let missing = || os(format!("ask for {what} messages of {}", self.address))(std::io::ErrorKind::NotFound.into());
        interrupts.into_iter().next().ok_or_else(missing)
    }
}

impl fmt::Debug for VfioDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VfioDevice({})", self.address)
    }
}
