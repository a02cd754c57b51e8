//! The changes that can be made to one function. Nothing here names another.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::host::{link_name, text};
use super::{Host, PciAddress, PciError};
use crate::lock_wait;

/// The driver that lends functions to user space.
pub(super) const VFIO: &str = "vfio-pci";
/// What `driver_override` reads as if there is none; an empty line removes one.
pub(super) const NO_OVERRIDE: &str = "(null)";

/// What a function had before it was taken.
#[derive(Debug)]
pub(super) struct Former {
    pub(super) driver: Option<String>,
    pub(super) driver_override: String,
}

/// A function of the bus, and how long to wait for those who use it.
#[derive(Debug, Clone)]
pub(super) struct Function {
    pub(super) host: Host,
    pub(super) address: PciAddress,
    pub(super) wait: Duration,
}

impl Function {
    /// Gives it to vfio-pci. `claims` keep others from starting to use it until its driver has let go.
    pub(super) fn take(&self, former: &Former, claims: Vec<OwnedFd>) -> Result<(), PciError> {
        self.set_override(VFIO)?;
        if let Some(driver) = &former.driver {
            self.write(self.host.driver(driver).join("unbind"), self.address.to_string())?;
        }
        drop(claims);
        self.probe()?;
        self.require_driver(Some(VFIO))
    }

    /// After a failure midway: makes it as it was, and answers what failed.
    pub(super) fn undo(&self, former: &Former, group: u32, cause: PciError) -> PciError {
        match self.put_back(former, Some(group)) {
            Ok(()) => cause,
            Err(restore) => PciError::NotRestored { cause: Box::new(cause), restore: Box::new(restore) },
        }
    }

    /// Makes it as it was.
    pub(super) fn put_back(&self, former: &Former, group: Option<u32>) -> Result<(), PciError> {
        self.leave_vfio(&former.driver_override, group)?;
        // By name: drivers_probe would take the first that fits.
        if let Some(driver) = former.driver.as_ref().filter(|_| self.driver().is_ok_and(|now| now.is_none())) {
            self.write(self.host.driver(driver).join("bind"), self.address.to_string())?;
        }
        self.require_driver(former.driver.as_deref())
    }

    /// Takes it from vfio-pci, if that has it, and leaves it without a driver.
    pub(super) fn leave_vfio(&self, driver_override: &str, group: Option<u32>) -> Result<(), PciError> {
        let on_vfio = self.driver()?.as_deref() == Some(VFIO);
        if on_vfio {
            self.require_unused(group)?;
        }
        if self.driver_override()? != driver_override {
            self.set_override(driver_override)?;
        }
        if on_vfio {
            self.write(self.host.driver(VFIO).join("unbind"), self.address.to_string())?;
        }
        Ok(())
    }

    /// Lets the kernel look for a driver.
    pub(super) fn probe(&self) -> Result<(), PciError> {
        self.write(self.host.pci_bus().join("drivers_probe"), self.address.to_string())
    }

    /// Unbinding waits in the kernel, without end, for whoever has the device open; a group has one user at a time.
    pub(super) fn require_unused(&self, group: Option<u32>) -> Result<(), PciError> {
        let Some(group) = group else { return Ok(()) };
        let node = self.host.node(&format!("vfio/{group}"));
        let free = lock_wait::until(Instant::now() + self.wait, || match self.host.kernel.claim(&node) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Ok(None),
            // Without a node nobody can have it open by it; whatever else is wrong, binding says better.
            Ok(_) | Err(_) => Ok(Some(())),
        })?;
        free.ok_or(PciError::VfioInUse { address: self.address, group })
    }

    /// The driver that has it.
    pub(super) fn driver(&self) -> Result<Option<String>, PciError> {
        link_name(&self.host.function(self.address).join("driver"))
    }

    fn require_driver(&self, wanted: Option<&str>) -> Result<(), PciError> {
        let driver = self.driver()?;
        if driver.as_deref() == wanted {
            return Ok(());
        }
        let wanted = wanted.map_or_else(|| "no driver".to_owned(), str::to_owned);
        Err(PciError::NotTaken { address: self.address, wanted, driver })
    }

    /// The only driver that may have it, as `driver_override` reads.
    pub(super) fn driver_override(&self) -> Result<String, PciError> {
        text(&self.override_path())
    }

    fn set_override(&self, driver: &str) -> Result<(), PciError> {
        let value = if driver == NO_OVERRIDE || driver.is_empty() { "\n" } else { driver };
        self.write(self.override_path(), value.to_owned())
    }

    fn override_path(&self) -> PathBuf {
        self.host.function(self.address).join("driver_override")
    }

    fn write(&self, path: PathBuf, value: String) -> Result<(), PciError> {
        let written = self.host.kernel.write_attribute(&path, &value);
        written.map_err(|source| PciError::Write { address: self.address, path, value, source })
    }
}
