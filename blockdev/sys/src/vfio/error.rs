//! What stops a device from being driven from user space, and what to do about it.

use std::io;

use thiserror::Error;

/// A VFIO call that failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum VfioError {
    /// Not the form DOMAIN:BUS:DEVICE.FUNCTION.
    #[error("{0:?} is no PCI address: write it like 0000:01:00.0")]
    BadAddress(String),
    /// Nothing in /sys/bus/pci/devices.
    #[error("there is no PCI device {0}: see lspci -D")]
    NoDevice(String),
    /// The IOMMU is off, or the device is not behind it.
    #[error(
        "PCI device {0} is in no IOMMU group: enable the IOMMU in the firmware and boot with intel_iommu=on (AMD: on by default)"
    )]
    NoIommuGroup(String),
    /// Another driver has the device, or none.
    #[error(
        "PCI device {address} is bound to {driver}, not to vfio-pci: write vfio-pci to its driver_override, unbind it, and write its address to /sys/bus/pci/drivers_probe"
    )]
    NotBound {
        /// The device.
        address: String,
        /// Its driver, or "no driver".
        driver: String,
    },
    /// Kernel drivers have other devices of the group.
    #[error("IOMMU group {group} is not viable: bind {} to vfio-pci, or unbind them", .devices.join(", "))]
    NotViable {
        /// Number of the group.
        group: u32,
        /// The devices in the way, with their drivers.
        devices: Vec<String>,
    },
    /// A group can be open once.
    #[error("IOMMU group {0} is in use: end the other program that drives a device of it")]
    GroupInUse(u32),
    /// SET_IOMMU was refused for want of it.
    #[error(
        "the IOMMU cannot isolate interrupts: enable interrupt remapping (boot without intremap=off), or load vfio_iommu_type1 with allow_unsafe_interrupts=1 if you trust the device"
    )]
    NoInterruptRemapping,
    /// A VFIO that we do not know.
    #[error("this kernel's VFIO has API version {version} or no type1v2 IOMMU: load vfio_iommu_type1")]
    Unsupported {
        /// What VFIO_GET_API_VERSION answers.
        version: i32,
    },
    /// Not a PCI device.
    #[error("{0} is no PCI device for VFIO")]
    NotPci(String),
    /// Nothing can be mapped where no device is.
    #[error("this VFIO container has no device: open one before mapping memory")]
    NoIommu,
    /// The kernel does not say which addresses are allowed.
    #[error("the kernel does not report its IOVA ranges: Linux 5.4 and later do")]
    NoIovaRanges,
    /// No gap in the I/O address space.
    #[error("no free I/O addresses for {length:#x} bytes up to {highest:#x}: unmap something")]
    IovaExhausted {
        /// Bytes asked for.
        length: u64,
        /// Highest address allowed.
        highest: u64,
    },
    /// Part of the range is mapped, or may not be.
    #[error("I/O addresses {iova:#x} to {iova:#x}+{length:#x} are in use or not allowed")]
    IovaTaken {
        /// Start of the range.
        iova: u64,
        /// Its length, bytes.
        length: u64,
    },
    /// The kernel pins what a device reaches.
    #[error("mapping {length:#x} bytes for a device exceeds the limit of locked memory: raise it (ulimit -l, LimitMEMLOCK=)")]
    LockedMemory {
        /// Bytes asked for.
        length: u64,
    },
    /// `dma_entry_limit` of vfio_iommu_type1.
    #[error("the IOMMU has no mapping left: raise /sys/module/vfio_iommu_type1/parameters/dma_entry_limit")]
    NoMappingLeft,
    /// Something else than the whole mapping was taken away: a device may still reach the memory.
    #[error("unmapping {length:#x} bytes at {iova:#x} took {unmapped:#x} away: reset the devices of the container")]
    Unmap {
        /// Start of the mapping.
        iova: u64,
        /// Its length, bytes.
        length: u64,
        /// What the kernel says it unmapped, bytes.
        unmapped: u64,
    },
    /// The device has fewer interrupts than asked for.
    #[error("{address} has {available} MSI-X interrupts, {wanted} were asked for")]
    Interrupts {
        /// The device.
        address: String,
        /// Asked for.
        wanted: u32,
        /// There are.
        available: u32,
    },
    /// The device has no reset that VFIO can do.
    #[error("{0} cannot be reset by itself")]
    NoReset(String),
    /// Any other answer of the kernel.
    #[error("cannot {action}: {source}")]
    Os {
        /// What was tried, on what.
        action: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Names what failed.
pub(super) fn os(action: impl Into<String>) -> impl FnOnce(io::Error) -> VfioError {
    let action = action.into();
    |source| VfioError::Os { action, source }
}
