//! What sysfs says about a PCI device and its IOMMU group.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::error::{VfioError, os};

/// Root of sysfs.
pub(super) const SYSFS: &str = "/sys";

/// Number of the IOMMU group of the device at `address`, once it is sure that vfio-pci drives it.
pub(super) fn group_of(sysfs: &Path, address: &str) -> Result<u32, VfioError> {
    if !is_address(address) {
        return Err(VfioError::BadAddress(address.to_string()));
    }
    let device = sysfs.join("bus/pci/devices").join(address);
    if !device.exists() {
        return Err(VfioError::NoDevice(address.to_string()));
    }
    let Some(group) = last_of_link(&device.join("iommu_group")) else {
        return Err(VfioError::NoIommuGroup(address.to_string()));
    };
    let driver = driver_of(&device);
    if driver.as_deref() != Some("vfio-pci") {
        let driver = driver.unwrap_or_else(|| "no driver".to_string());
        return Err(VfioError::NotBound { address: address.to_string(), driver });
    }
    group.parse().map_err(|_| os(format!("understand IOMMU group {group:?}"))(io::ErrorKind::InvalidData.into()))
}

/// Devices of a group that are in the hands of other drivers than VFIO's, as "ADDRESS (driver)".
pub(super) fn foreign_devices(sysfs: &Path, group: u32) -> Vec<String> {
    let devices = sysfs.join(format!("kernel/iommu_groups/{group}/devices"));
    let entries = fs::read_dir(devices).into_iter().flatten().flatten();
    let foreign = entries.filter_map(|entry| {
        let driver = driver_of(&entry.path()).filter(|driver| driver != "vfio-pci" && driver != "pcieport")?;
        Some(format!("{} ({driver})", entry.file_name().to_string_lossy()))
    });
    let mut foreign: Vec<String> = foreign.collect();
    foreign.sort();
    foreign
}

fn driver_of(device: &Path) -> Option<String> {
    last_of_link(&device.join("driver"))
}

fn last_of_link(link: &Path) -> Option<String> {
    let target: PathBuf = fs::read_link(link).ok()?;
    Some(target.file_name()?.to_str()?.to_string())
}

/// DOMAIN:BUS:DEVICE.FUNCTION in lower-case hexadecimal digits, as sysfs writes it.
fn is_address(text: &str) -> bool {
    let hex = |part: &str, digits: std::ops::RangeInclusive<usize>| {
        digits.contains(&part.len()) && part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let Some((domain, rest)) = text.split_once(':') else { return false };
    let Some((bus, rest)) = rest.split_once(':') else { return false };
    let Some((device, function)) = rest.split_once('.') else { return false };
    hex(domain, 4..=8) && hex(bus, 2..=2) && hex(device, 2..=2) && hex(function, 1..=1)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::*;

    const ADDRESS: &str = "0000:00:03.0";

    fn sysfs_with(driver: Option<&str>, group: Option<&str>) -> TempDir {
        let root = TempDir::new().expect("directory");
        let device = root.path().join("bus/pci/devices").join(ADDRESS);
        fs::create_dir_all(&device).expect("device");
        if let Some(driver) = driver {
            symlink(format!("../../../../bus/pci/drivers/{driver}"), device.join("driver")).expect("driver");
        }
        if let Some(group) = group {
            symlink(format!("../../../../kernel/iommu_groups/{group}"), device.join("iommu_group")).expect("group");
            let devices = root.path().join(format!("kernel/iommu_groups/{group}/devices"));
            fs::create_dir_all(&devices).expect("group");
            symlink(&device, devices.join(ADDRESS)).expect("member");
        }
        root
    }

    #[test]
    fn each_obstacle_has_its_own_error() {
        let group = |driver, group| {
            let root = sysfs_with(driver, group);
            group_of(root.path(), ADDRESS)
        };
        assert_eq!(group(Some("vfio-pci"), Some("7")).expect("fine"), 7);
        assert!(matches!(group(Some("vfio-pci"), None), Err(VfioError::NoIommuGroup(_))));
        assert!(matches!(group(Some("nvme"), Some("7")), Err(VfioError::NotBound { driver, .. }) if driver == "nvme"));
        assert!(matches!(group(None, Some("7")), Err(VfioError::NotBound { driver, .. }) if driver == "no driver"));
        let root = sysfs_with(None, None);
        assert!(matches!(group_of(root.path(), "0000:00:04.0"), Err(VfioError::NoDevice(_))));
    }

    #[test]
    fn an_address_is_no_path() {
        for text in ["", "00:03.0", "0000:00:03", "../../0000:00:03.0", "0000:00:03.0/..", "0000:00:03.10", "0000:0g:03.0"] {
            assert!(matches!(group_of(Path::new(SYSFS), text), Err(VfioError::BadAddress(_))), "{text}");
        }
        assert!(is_address("10000:e1:00.0"), "domains behind a VMD have five digits");
    }

    #[test]
    fn devices_in_other_hands_are_named() {
        let root = sysfs_with(Some("nvme"), Some("7"));
        assert_eq!(foreign_devices(root.path(), 7), [format!("{ADDRESS} (nvme)")]);
        let root = sysfs_with(Some("vfio-pci"), Some("7"));
        assert!(foreign_devices(root.path(), 7).is_empty());
        assert!(foreign_devices(root.path(), 8).is_empty());
    }
}
