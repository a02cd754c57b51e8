//! The addresses that an IOMMU group's devices can be given.

use std::path::Path;

use super::PciError;
use super::group::is_made_up;
use super::host::{link_name, malformed, text, text_if_there};

/// The type of a group whose devices use addresses as they are (`iommu=pt`).
const IDENTITY: &str = "identity";

/// A group's address space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressSpace {
    /// Number of the group.
    pub group: u32,
    /// Addresses that are not given to devices; first and last byte.
    pub reserved: Vec<(u64, u64)>,
}

/// The address space in which an IOMMU translates what this function asks for; `None` where addresses stay as they are.
pub(super) fn read(function: &Path) -> Result<Option<AddressSpace>, PciError> {
    let link = function.join("iommu_group");
    let Some(name) = link_name(&link)? else { return Ok(None) };
    if is_made_up(&link)? || text_if_there(&link.join("type"))?.as_deref() == Some(IDENTITY) {
        return Ok(None);
    }
    let group = name.parse().map_err(|_| malformed(&link, &name))?;
    let path = link.join("reserved_regions");
    let regions = text(&path)?;
    let reserved = regions.lines().map(|line| region(line).ok_or_else(|| malformed(&path, line)));
    Ok(Some(AddressSpace { group, reserved: reserved.collect::<Result<_, _>>()? }))
}

/// First byte, last byte and kind. Of all kinds (MSI, direct, reserved) none can be given.
fn region(line: &str) -> Option<(u64, u64)> {
    let mut fields = line.split_whitespace().map(|field| u64::from_str_radix(field.strip_prefix("0x")?, 16).ok());
    let (first, last) = (fields.next()??, fields.next()??);
    (first <= last).then_some((first, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_region_or_an_error() {
        assert_eq!(region("0x00000000fee00000 0x00000000feefffff msi"), Some((0xfee0_0000, 0xfeef_ffff)));
        for bad in ["", "0x1", "0x2 0x1 direct", "msi 0x1 0x2", "1 2 msi"] {
            assert_eq!(region(bad), None, "{bad}");
        }
    }
}
