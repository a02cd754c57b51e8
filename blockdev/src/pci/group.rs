//! IOMMU groups: the smallest set of devices that VFIO can lend, because they are not isolated from each other.

use std::path::Path;

use super::PciError;
use super::function::VFIO;
use super::host::{link_name, malformed, names, text_if_there};

/// Drivers that do no DMA on behalf of the kernel. Bridges stay with the port driver.
const ACCEPTED: [&str; 3] = [VFIO, "pci-stub", "pcieport"];
/// What VFIO calls the groups that it makes up where there is no IOMMU.
const NO_IOMMU: &str = "vfio-noiommu";

/// A device in a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupMember {
    /// Its name on its bus: for a PCI device its address.
    pub name: String,
    /// Its driver.
    pub driver: Option<String>,
}

impl GroupMember {
    /// VFIO lends the group although this is in it.
    pub fn accepted(&self) -> bool {
        self.driver.as_deref().is_none_or(|driver| ACCEPTED.contains(&driver))
    }
}

/// A device's group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IommuGroup {
    /// Its number: `/dev/vfio/NUMBER`.
    pub number: u32,
    /// All devices in it, also the one that was asked about.
    pub members: Vec<GroupMember>,
}

/// There is no IOMMU behind the group in this directory.
pub(super) fn is_made_up(group: &Path) -> Result<bool, PciError> {
    Ok(text_if_there(&group.join("name"))?.as_deref() == Some(NO_IOMMU))
}

/// The group of the device in this directory; `None` if no IOMMU stands before it.
pub(super) fn read(function: &Path) -> Result<Option<IommuGroup>, PciError> {
    let link = function.join("iommu_group");
    let Some(name) = link_name(&link)? else { return Ok(None) };
    if is_made_up(&link)? {
        return Ok(None);
    }
    let number = name.parse().map_err(|_| malformed(&link, &name))?;
    let devices = link.join("devices");
    let members = names(&devices)?.into_iter().map(|name| {
        let driver = link_name(&devices.join(&name).join("driver"))?;
        Ok(GroupMember { name, driver })
    });
    Ok(Some(IommuGroup { number, members: members.collect::<Result<_, PciError>>()? }))
}
