//! Why a controller cannot be looked at, taken or given back.

use std::io;
use std::path::PathBuf;

use super::PciAddress;

/// What failed on which device, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum PciError {
    /// Nothing is there.
    #[error("{address}: no such PCI device; `peerfs nvme list` shows the NVMe controllers of this machine")]
    NoSuchDevice {
        /// As named by the user.
        address: PciAddress,
    },
    /// Something else is there.
    #[error("{address}: is no NVMe controller (PCI class {class:06x}, not 010802); `peerfs nvme list` shows those")]
    NotNvme {
        /// The device.
        address: PciAddress,
        /// Its class code: class, subclass and programming interface.
        class: u32,
    },
    /// Nothing would bound the device's DMA.
    #[error(
        "{address}: has no IOMMU group, so nothing would bound its DMA: turn the IOMMU (VT-d, AMD-Vi) on in the firmware and boot \
         with intel_iommu=on or amd_iommu=on; the noiommu mode of VFIO is not supported"
    )]
    NoIommu {
        /// The device.
        address: PciAddress,
    },
    /// The driver is not loaded.
    #[error("{address}: the driver vfio-pci is not there: load it with `modprobe vfio-pci`")]
    NoVfio {
        /// The device.
        address: PciAddress,
    },
    /// The group cannot be handed to user space as a whole.
    #[error(
        "{address}: its IOMMU group {group} also has {members}: VFIO lends a group only as a whole, so unbind these or give them to \
         vfio-pci, or put the controller into a slot with a group of its own"
    )]
    GroupShared {
        /// The device.
        address: PciAddress,
        /// Number of the IOMMU group.
        group: u32,
        /// The members in the way and their drivers, for people.
        members: String,
    },
    /// Something would be lost, or torn from whoever uses it.
    #[error("{address}: in use: {findings}; end that use first, or force it with --force and accept the loss")]
    InUse {
        /// The device.
        address: PciAddress,
        /// What was found, for people.
        findings: String,
    },
    /// Another process holds the device's lock.
    #[error("{address}: another peerfs process uses it: unmount its volume, or wait until that process has finished")]
    Locked {
        /// The device.
        address: PciAddress,
    },
    /// Another program has the device's group open.
    #[error("{address}: a program uses its IOMMU group {group}: end it first (`fuser /dev/vfio/{group}` names it)")]
    VfioInUse {
        /// The device.
        address: PciAddress,
        /// Number of the IOMMU group.
        group: u32,
    },
    /// There is nothing to give back.
    #[error("{address}: is not on vfio-pci ({} has it): there is nothing to give back", who(driver))]
    NotOnVfio {
        /// The device.
        address: PciAddress,
        /// Its driver.
        driver: Option<String>,
    },
    /// The kernel was asked, and another driver or none has the device.
    #[error("{address}: {wanted} should have it now, but {} has it; the kernel log (dmesg) says why", who(driver))]
    NotTaken {
        /// The device.
        address: PciAddress,
        /// The driver that was to have it.
        wanted: String,
        /// Its driver.
        driver: Option<String>,
    },
    /// Free of its override, the device still goes to vfio-pci.
    #[error(
        "{address}: vfio-pci took it again at once, because an identifier of vfio-pci names it: remove it from the module's parameter \
         `ids`, or from `new_id` by writing it to remove_id, and try again"
    )]
    TakenAgain {
        /// The device.
        address: PciAddress,
    },
    /// The kernel refused a change.
    #[error("{address}: cannot write `{}` to {}: {source}; binding needs root and a writable sysfs", .value.trim(), .path.display())]
    Write {
        /// The device.
        address: PciAddress,
        /// The attribute.
        path: PathBuf,
        /// What was to be written.
        value: String,
        /// What the kernel answered.
        source: io::Error,
    },
    /// Taking the device failed, and so did giving it back.
    #[error("{cause}; and it could not be given back to its former driver: {restore}")]
    NotRestored {
        /// Why it was not taken.
        cause: Box<PciError>,
        /// Why it was not given back.
        restore: Box<PciError>,
    },
    /// The kernel's description of the machine cannot be read.
    #[error("cannot read {}: {source}; are sysfs and procfs mounted?", .path.display())]
    Read {
        /// The file, directory or link.
        path: PathBuf,
        /// What the kernel answered.
        source: io::Error,
    },
    /// The kernel's description of the machine is not as documented.
    #[error("{} holds `{text}`, which is not understood", .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Its content, shortened.
        text: String,
    },
}

fn who(driver: &Option<String>) -> String {
    driver.as_ref().map_or_else(|| "no driver".to_owned(), |name| format!("driver {name}"))
}
