//! One PCI function, as sysfs describes it.

use std::path::Path;

use super::host::{link_name, malformed, text, text_if_there};
use super::{Bar, Host, IommuGroup, PciAddress, PciError, bar, group};

/// Class code of NVM Express I/O controllers (PCI Code and ID Assignment: mass storage, non-volatile memory, NVMe).
const NVME_CLASS: u32 = 0x01_08_02;

/// A snapshot of a function's description.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PciDevice {
    /// Where it is.
    pub address: PciAddress,
    /// Class, subclass and programming interface, a byte each.
    pub class: u32,
    /// Vendor identifier.
    pub vendor: u16,
    /// Device identifier.
    pub device: u16,
    /// The driver that has it.
    pub driver: Option<String>,
    /// What VFIO would lend with it; `None` without an IOMMU.
    pub group: Option<IommuGroup>,
    /// Its implemented BARs.
    pub bars: Vec<Bar>,
}

impl PciDevice {
    /// Looks at a function.
    ///
    /// # Errors
    /// [`PciError::NoSuchDevice`]; [`PciError::Read`] and [`PciError::Malformed`] if sysfs is not as documented.
    pub fn read(host: &Host, address: PciAddress) -> Result<Self, PciError> {
        let directory = host.function(address);
        let Some(class) = text_if_there(&directory.join("class"))? else {
            return Err(PciError::NoSuchDevice { address });
        };
        Ok(PciDevice {
            address,
            class: hex(&directory.join("class"), &class)?,
            vendor: identifier(&directory.join("vendor"))?,
            device: identifier(&directory.join("device"))?,
            driver: link_name(&directory.join("driver"))?,
            group: group::read(&directory)?,
            bars: bar::read(&directory.join("resource"))?,
        })
    }

    /// As [`PciDevice::read`], for an NVMe controller only.
    ///
    /// # Errors
    /// As [`PciDevice::read`], and [`PciError::NotNvme`].
    pub fn read_nvme(host: &Host, address: PciAddress) -> Result<Self, PciError> {
        let device = PciDevice::read(host, address)?;
        if device.is_nvme() { Ok(device) } else { Err(PciError::NotNvme { address, class: device.class }) }
    }

    /// It is an NVMe controller that does I/O.
    pub fn is_nvme(&self) -> bool {
        self.class == NVME_CLASS
    }
}

/// The number of 16 bits in an attribute.
pub(super) fn identifier(path: &Path) -> Result<u16, PciError> {
    let value = text(path)?;
    u16::try_from(hex(path, &value)?).map_err(|_| malformed(path, &value))
}

/// A number as attributes give it, with or without `0x`.
pub(super) fn hex(path: &Path, value: &str) -> Result<u32, PciError> {
    let digits = value.strip_prefix("0x").unwrap_or(value);
    u32::from_str_radix(digits, 16).map_err(|_| malformed(path, value))
}
