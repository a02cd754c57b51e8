//! NVMe controllers, and what the kernel's driver shows of those it has.

use super::host::{malformed, names, text_if_there};
use super::{Host, PciDevice, PciError};

/// Unit of a block device's `size` in sysfs, bytes, whatever its blocks are.
const SECTOR_BYTES: u64 = 512;

/// A controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Controller {
    /// Its PCI function.
    pub device: PciDevice,
    /// Model number, if the kernel's driver has it.
    pub model: Option<String>,
    /// Serial number, if the kernel's driver has it.
    pub serial: Option<String>,
    /// Its namespaces that are block devices: none unless the kernel's driver has it.
    pub namespaces: Vec<Namespace>,
}

/// A namespace that is a block device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    /// Name of the block device: `nvme0n1`. Where several controllers lead to it, the name of the common one.
    pub block: String,
    /// Its size, bytes.
    pub size_bytes: u64,
    /// Names of its partitions, as far as the kernel has looked for them.
    pub partitions: Vec<String>,
}

/// All NVMe controllers, by address; none where there is no PCI bus.
///
/// # Errors
/// [`PciError::Read`] and [`PciError::Malformed`] if sysfs is not as documented.
pub fn controllers(host: &Host) -> Result<Vec<Controller>, PciError> {
    let mut controllers = Vec::new();
    for name in names(&host.pci_bus().join("devices"))? {
        let Ok(address) = name.parse() else { continue };
        match PciDevice::read(host, address) {
            Ok(device) if device.is_nvme() => controllers.push(Controller::of(host, device)?),
            // Unplugged while we look.
            Ok(_) | Err(PciError::NoSuchDevice { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(controllers)
}

impl Controller {
    /// What is known of the controller that this function is.
    pub(super) fn of(host: &Host, device: PciDevice) -> Result<Self, PciError> {
        let directory = host.function(device.address).join("nvme");
        let mut controller = Controller { device, model: None, serial: None, namespaces: Vec::new() };
        for instance in names(&directory)? {
            let instance = directory.join(instance);
            controller.model = text_if_there(&instance.join("model"))?;
            controller.serial = text_if_there(&instance.join("serial"))?;
            for block in names(&instance)?.iter().filter_map(|name| block_of(name)) {
                controller.namespaces.extend(Namespace::read(host, block)?);
            }
        }
        Ok(controller)
    }
}

impl Namespace {
    /// `None`: no block device stands for it (no path to it works), so nobody can use it.
    fn read(host: &Host, block: String) -> Result<Option<Self>, PciError> {
        let directory = host.block(&block);
        let path = directory.join("size");
        let Some(sectors) = text_if_there(&path)? else { return Ok(None) };
        let size_bytes = sectors.parse().ok().and_then(|sectors: u64| sectors.checked_mul(SECTOR_BYTES));
        let size_bytes = size_bytes.ok_or_else(|| malformed(&path, &sectors))?;
        let mut partitions = Vec::new();
        for name in names(&directory)? {
            if text_if_there(&directory.join(&name).join("partition")).is_ok_and(|number| number.is_some()) {
                partitions.push(name);
            }
        }
        Ok(Some(Namespace { block, size_bytes, partitions }))
    }
}

/// The block device that an entry of a controller's directory stands for, if it is a namespace: `nvme0n1` for itself, and
/// for `nvme0c1n1`, the hidden way to it through controller 1 of subsystem 0 (drivers/nvme/host/core.c, nvme_alloc_ns).
fn block_of(entry: &str) -> Option<String> {
    let (subsystem, rest) = entry.strip_prefix("nvme").and_then(number)?;
    let rest = match rest.strip_prefix('c') {
        Some(rest) => number(rest)?.1,
        None => rest,
    };
    let (namespace, rest) = rest.strip_prefix('n').and_then(number)?;
    rest.is_empty().then(|| format!("nvme{subsystem}n{namespace}"))
}

/// The digits at the start of a text, and what follows them.
fn number(text: &str) -> Option<(&str, &str)> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    (digits > 0).then(|| text.split_at(digits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_are_told_from_other_entries() {
        assert_eq!(block_of("nvme0n1").as_deref(), Some("nvme0n1"));
        assert_eq!(block_of("nvme3c12n2").as_deref(), Some("nvme3n2"));
        for other in ["ng0n1", "model", "nvme0", "nvme0n", "nvme0n1p1", "nvme0c0", "nvmen1", "hwmon1", "nvme0c0n1x"] {
            assert_eq!(block_of(other), None, "{other}");
        }
    }
}
