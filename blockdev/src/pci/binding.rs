//! Taking a controller from its driver for vfio-pci, and giving it back.
//!
//! `driver_override` makes sure that vfio-pci takes this function and no other, also none of the same kind that is
//! plugged in later (`new_id` would take those).

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use super::function::{Former, Function, NO_OVERRIDE, VFIO};
use super::usage::require_idle;
use super::{DeviceLock, Host, PciAddress, PciDevice, PciError};

/// A controller that vfio-pci has, with its lock. Dropping it restores the former driver, and logs if that fails.
///
/// Close every VFIO descriptor of the controller first: the kernel would wait for it, so restoring refuses. If this
/// process is killed the controller stays on vfio-pci, and [`unbind`] gives it back.
#[derive(Debug)]
pub struct Binding {
    function: Function,
    lock: DeviceLock,
    group: u32,
    former: Option<Former>,
}

impl Binding {
    /// Gives the controller at `address` to vfio-pci, after checking that nothing is harmed by it; with `force` what was
    /// found on its namespaces is no obstacle. If it has been on vfio-pci before, it is left there, also at the end.
    /// Waits at most `wait` for another process to let go of the controller.
    ///
    /// # Errors
    /// Any [`PciError`] but those of [`unbind`]; then everything is as it was, unless it is [`PciError::NotRestored`].
    pub fn bind(host: &Host, address: PciAddress, force: bool, wait: Duration) -> Result<Self, PciError> {
        PciDevice::read_nvme(host, address)?;
        let lock = DeviceLock::acquire(host, address, wait)?;
        let device = PciDevice::read_nvme(host, address)?;
        let group = usable_group(&device)?;
        let function = Function { host: host.clone(), address, wait };
        let mut binding = Binding { function, lock, group, former: None };
        if device.driver.as_deref() == Some(VFIO) {
            binding.function.require_unused(Some(group))?;
            return Ok(binding);
        }
        if !host.driver(VFIO).is_dir() {
            return Err(PciError::NoVfio { address });
        }
        let claims = if force { Vec::new() } else { require_idle(host, &device)? };
        let former = Former { driver: device.driver, driver_override: binding.function.driver_override()? };
        match binding.function.take(&former, claims) {
            Ok(()) => binding.former = Some(former),
            Err(cause) => return Err(binding.function.undo(&former, group, cause)),
        }
        Ok(binding)
    }

    /// The controller.
    pub fn address(&self) -> PciAddress {
        self.function.address
    }

    /// Its IOMMU group: VFIO lends it as `/dev/vfio/NUMBER`.
    pub fn group(&self) -> u32 {
        self.group
    }

    /// It was on vfio-pci already, and stays there.
    pub fn was_bound(&self) -> bool {
        self.former.is_none()
    }

    /// The driver that will get it back.
    pub fn former_driver(&self) -> Option<&str> {
        self.former.as_ref()?.driver.as_deref()
    }

    /// A descriptor that keeps the controller locked, for a process that may outlive this one.
    ///
    /// # Errors
    /// What dup(2) answers.
    pub fn lock_fd(&self) -> io::Result<OwnedFd> {
        self.lock.share()
    }

    /// Leaves the controller on vfio-pci for good, and unlocks it.
    pub fn keep(mut self) {
        self.former = None;
    }

    /// Unlocks the controller, for processes that use it one after the other, and keeps its former driver from it.
    pub fn reserve(mut self) -> Reservation {
        Reservation { function: self.function.clone(), group: self.group, former: self.former.take() }
    }

    /// Gives the controller back to its former driver, and unlocks it.
    ///
    /// # Errors
    /// [`PciError::VfioInUse`], [`PciError::Write`], [`PciError::NotTaken`], [`PciError::Read`].
    pub fn restore(mut self) -> Result<(), PciError> {
        self.former.take().map_or(Ok(()), |former| self.function.put_back(&former, Some(self.group)))
    }
}

impl Drop for Binding {
    fn drop(&mut self) {
        if let Some(former) = self.former.take()
            && let Err(error) = self.function.put_back(&former, Some(self.group))
        {
            tracing::warn!(%error, "the controller stays on vfio-pci; `peerfs nvme unbind` gives it back");
        }
    }
}

/// A controller that stays on vfio-pci while processes use it one after the other, each with its own lock. Dropping it
/// restores the former driver, once the last of them has let go, and logs if that fails.
#[derive(Debug)]
pub struct Reservation {
    function: Function,
    group: u32,
    former: Option<Former>,
}

impl Reservation {
    fn end(&mut self) -> Result<(), PciError> {
        let Some(former) = self.former.take() else { return Ok(()) };
        let _lock = DeviceLock::acquire(&self.function.host, self.function.address, self.function.wait)?;
        self.function.put_back(&former, Some(self.group))
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::warn!(%error, "the controller stays on vfio-pci; `peerfs nvme unbind` gives it back");
        }
    }
}

/// Gives a controller that is on vfio-pci to the driver that the kernel finds for it; answers which, if any. Waits at most
/// `wait` for another process to let go of it.
///
/// # Errors
/// [`PciError::NoSuchDevice`], [`PciError::NotNvme`], [`PciError::NotOnVfio`], [`PciError::Locked`],
/// [`PciError::VfioInUse`], [`PciError::TakenAgain`], [`PciError::Write`], [`PciError::Read`].
pub fn unbind(host: &Host, address: PciAddress, wait: Duration) -> Result<Option<String>, PciError> {
    PciDevice::read_nvme(host, address)?;
    let _lock = DeviceLock::acquire(host, address, wait)?;
    let device = PciDevice::read_nvme(host, address)?;
    if device.driver.as_deref() != Some(VFIO) {
        return Err(PciError::NotOnVfio { address, driver: device.driver });
    }
    let function = Function { host: host.clone(), address, wait };
    function.leave_vfio(NO_OVERRIDE, device.group.map(|group| group.number))?;
    function.probe()?;
    match function.driver()? {
        Some(driver) if driver == VFIO => Err(PciError::TakenAgain { address }),
        driver => Ok(driver),
    }
}

/// The group's number, if VFIO would lend it.
fn usable_group(device: &PciDevice) -> Result<u32, PciError> {
    let address = device.address;
    let group = device.group.as_ref().ok_or(PciError::NoIommu { address })?;
    let own = address.to_string();
    let in_the_way = group.members.iter().filter(|member| member.name != own && !member.accepted());
    let members: Vec<String> =
        in_the_way.map(|member| format!("{} (driver {})", member.name, member.driver.as_deref().unwrap_or_default())).collect();
    if members.is_empty() {
        Ok(group.number)
    } else {
        Err(PciError::GroupShared { address, group: group.number, members: members.join(", ") })
    }
}
