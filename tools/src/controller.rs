//! The controller that a command names: on vfio-pci, and locked, while the command uses it.
//!
//! One that has a kernel driver is taken from it for so long, if nothing on it is in use, and given back at the end.
//! After SIGKILL it stays on vfio-pci, and `peerfs nvme unbind` gives it back.

use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Context, Result};
use peerfs_blockdev::DeviceSpec;
use peerfs_blockdev::pci::{Binding, Host, PciAddress, Reservation};

/// Restores the former driver when dropped. Every use of the device must have ended by then.
#[must_use = "the controller is given back when this is dropped"]
pub struct Held(Option<Binding>);

/// Takes what `device` names, waiting at most `wait` for another process to let go of it. Devices that are no
/// controllers need nothing.
pub fn hold(device: &DeviceSpec, wait: Duration) -> Result<Held> {
    let DeviceSpec::Nvme(address, _) = device else { return Ok(Held(None)) };
    let binding = Binding::bind(&Host::system(), *address, false, wait).with_context(|| device.to_string())?;
    Ok(Held(Some(binding)))
}

/// Takes the controller of an importer, as [`hold`] does.
pub fn hold_importer(address: PciAddress, wait: Duration) -> Result<Held> {
    let binding = Binding::bind(&Host::system(), address, false, wait).with_context(|| format!("importer nvme:{address}"))?;
    Ok(Held(Some(binding)))
}

/// As [`hold`], for processes that use the controller one after the other. The answer, if there is one, restores the former
/// driver when dropped.
pub fn reserve(device: &DeviceSpec, wait: Duration) -> Result<Option<Reservation>> {
    Ok(hold(device, wait)?.0.map(Binding::reserve))
}

impl Held {
    /// Keeps the controller locked in a process that may outlive this one.
    pub fn lock(&self) -> Result<Option<OwnedFd>> {
        let lock = self.0.as_ref().map(Binding::lock_fd).transpose();
        lock.context("the lock of the controller cannot be shared")
    }
}
