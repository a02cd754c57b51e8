//! The regions of a device: its BARs and its configuration space.

use std::fs::File;
use std::io;

use super::{abi, ioctl};

/// A region, as VFIO describes it. Units: bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegionInfo {
    /// 0 to 5: BARs; 7: configuration space.
    pub index: u32,
    /// 0: there is none.
    pub length: u64,
    /// It may be read and written.
    pub accessible: bool,
    /// What may be mapped, as offset and length in the region.
    pub mappable: Vec<(u64, u64)>,
    /// Where it begins in the device's file.
    pub(super) start: u64,
}

impl RegionInfo {
    pub(super) fn of(device: &File, index: u32) -> io::Result<Self> {
        let (header, answer) = ioctl::region_info(device, index)?;
        let both = abi::REGION_READ | abi::REGION_WRITE;
        Ok(RegionInfo {
            index,
            length: header.size,
            accessible: header.flags & both == both,
            mappable: mappable(&header, &answer),
            start: header.offset,
        })
    }
}

/// All of it, unless a capability names parts.
fn mappable(header: &abi::RegionHeader, answer: &[u8]) -> Vec<(u64, u64)> {
    if header.flags & abi::REGION_MMAP == 0 || header.size == 0 {
        return Vec::new();
    }
    let first = if header.flags & abi::REGION_CAPS != 0 { header.cap_offset } else { 0 };
    match abi::capability(answer, first, abi::CAP_SPARSE_MMAP).and_then(abi::pairs) {
        Some(parts) => parts.into_iter().filter(|(_, length)| *length > 0).collect(),
        None => vec![(0, header.size)],
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes;

    use super::*;

    #[test]
    fn only_what_the_kernel_allows_is_mapped() {
        let header = abi::RegionHeader { flags: abi::REGION_MMAP, size: 0x4000, ..Default::default() };
        assert_eq!(mappable(&header, header.as_bytes()), [(0, 0x4000)]);
        assert!(mappable(&abi::RegionHeader { flags: 0, ..header }, &[]).is_empty());

        let sparse = abi::RegionHeader { flags: abi::REGION_MMAP | abi::REGION_CAPS, cap_offset: 32, ..header };
        let list: [u32; 12] = [1, 0, 2, 0, 0, 0, 0x2000, 0, 0x3000, 0, 0x1000, 0];
        let answer = [sparse.as_bytes(), list.as_bytes()].concat();
        assert_eq!(mappable(&sparse, &answer), [(0, 0x2000), (0x3000, 0x1000)]);
    }
}
