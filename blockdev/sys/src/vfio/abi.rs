//! What crosses the boundary to VFIO: structures and numbers of linux/vfio.h.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `VFIO_API_VERSION`.
pub(super) const API_VERSION: i32 = 0;
/// `VFIO_TYPE1v2_IOMMU`.
pub(super) const TYPE1V2_IOMMU: u32 = 3;

/// `_IO(VFIO_TYPE, VFIO_BASE + number)`: no VFIO command carries a size.
const fn command(number: u32) -> u32 {
    ((b';' as u32) << 8) | (100 + number)
}

pub(super) const GET_API_VERSION: u32 = command(0);
pub(super) const CHECK_EXTENSION: u32 = command(1);
pub(super) const SET_IOMMU: u32 = command(2);
pub(super) const GROUP_GET_STATUS: u32 = command(3);
pub(super) const GROUP_SET_CONTAINER: u32 = command(4);
pub(super) const GROUP_GET_DEVICE_FD: u32 = command(6);
pub(super) const DEVICE_GET_INFO: u32 = command(7);
pub(super) const DEVICE_GET_REGION_INFO: u32 = command(8);
pub(super) const DEVICE_GET_IRQ_INFO: u32 = command(9);
pub(super) const DEVICE_SET_IRQS: u32 = command(10);
pub(super) const DEVICE_RESET: u32 = command(11);
pub(super) const IOMMU_GET_INFO: u32 = command(12);
pub(super) const IOMMU_MAP_DMA: u32 = command(13);
pub(super) const IOMMU_UNMAP_DMA: u32 = command(14);

/// `struct vfio_group_status`.
#[derive(Debug, Default, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct GroupStatus {
    pub(super) argsz: u32,
    pub(super) flags: u32,
}

pub(super) const GROUP_VIABLE: u32 = 1 << 0;

/// `struct vfio_device_info`, without its capabilities.
#[derive(Debug, Default, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct DeviceInfo {
    pub(super) argsz: u32,
    pub(super) flags: u32,
    pub(super) num_regions: u32,
    pub(super) num_irqs: u32,
}

pub(super) const DEVICE_CAN_RESET: u32 = 1 << 0;
pub(super) const DEVICE_IS_PCI: u32 = 1 << 1;

/// `struct vfio_region_info`.
#[derive(Debug, Default, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct RegionHeader {
    pub(super) argsz: u32,
    pub(super) flags: u32,
    pub(super) index: u32,
    pub(super) cap_offset: u32,
    pub(super) size: u64,
    pub(super) offset: u64,
}

pub(super) const REGION_READ: u32 = 1 << 0;
pub(super) const REGION_WRITE: u32 = 1 << 1;
pub(super) const REGION_MMAP: u32 = 1 << 2;
pub(super) const REGION_CAPS: u32 = 1 << 3;

/// `VFIO_PCI_CONFIG_REGION_INDEX`.
pub(super) const CONFIG_REGION: u32 = 7;
/// Regions 0 to 5 are the BARs.
pub(super) const BARS: u32 = 6;

/// `struct vfio_irq_info`.
#[derive(Debug, Default, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct IrqInfo {
    pub(super) argsz: u32,
    pub(super) flags: u32,
    pub(super) index: u32,
    pub(super) count: u32,
}

/// `struct vfio_irq_set`, before its data.
#[derive(Debug, Default, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct IrqSet {
    pub(super) argsz: u32,
    pub(super) flags: u32,
    pub(super) index: u32,
    pub(super) start: u32,
    pub(super) count: u32,
}

pub(super) const IRQ_SET_DATA_NONE: u32 = 1 << 0;
pub(super) const IRQ_SET_DATA_EVENTFD: u32 = 1 << 2;
pub(super) const IRQ_SET_ACTION_TRIGGER: u32 = 1 << 5;

/// `VFIO_PCI_MSIX_IRQ_INDEX`.
pub(super) const MSIX_IRQ: u32 = 2;
/// `VFIO_PCI_ERR_IRQ_INDEX`.
pub(super) const ERROR_IRQ: u32 = 3;
/// `VFIO_PCI_REQ_IRQ_INDEX`.
pub(super) const REQUEST_IRQ: u32 = 4;

/// `struct vfio_iommu_type1_info`.
#[derive(Debug, Default, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct IommuHeader {
    pub(super) argsz: u32,
    pub(super) flags: u32,
    pub(super) page_sizes: u64,
    pub(super) cap_offset: u32,
    pub(super) pad: u32,
}

pub(super) const IOMMU_CAPS: u32 = 1 << 1;

/// `struct vfio_iommu_type1_dma_map`.
#[derive(Debug, Default, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct DmaMap {
    pub(super) argsz: u32,
    pub(super) flags: u32,
    pub(super) vaddr: u64,
    pub(super) iova: u64,
    pub(super) size: u64,
}

pub(super) const DMA_READ: u32 = 1 << 0;
pub(super) const DMA_WRITE: u32 = 1 << 1;

/// `struct vfio_iommu_type1_dma_unmap`.
#[derive(Debug, Default, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct DmaUnmap {
    pub(super) argsz: u32,
    pub(super) flags: u32,
    pub(super) iova: u64,
    pub(super) size: u64,
}

/// `struct vfio_info_cap_header`: the capabilities of an answer are a chain of these.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct CapHeader {
    id: u16,
    version: u16,
    /// Offset from the start of the answer; 0 ends the chain.
    next: u32,
}

/// `struct vfio_region_info_cap_sparse_mmap` and `struct vfio_iommu_type1_info_cap_iova_range` alike: a counted list of pairs.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct PairList {
    header: CapHeader,
    count: u32,
    reserved: u32,
}

/// `VFIO_REGION_INFO_CAP_SPARSE_MMAP`: pairs of offset and size.
pub(super) const CAP_SPARSE_MMAP: u16 = 1;
/// `VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE`: pairs of first and last address.
pub(super) const CAP_IOVA_RANGE: u16 = 1;
/// `VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL`.
pub(super) const CAP_DMA_AVAIL: u16 = 3;

const _: () = assert!(size_of::<GroupStatus>() == 8);
const _: () = assert!(size_of::<DeviceInfo>() == 16);
const _: () = assert!(size_of::<RegionHeader>() == 32);
const _: () = assert!(size_of::<IrqInfo>() == 16);
const _: () = assert!(size_of::<IrqSet>() == 20);
const _: () = assert!(size_of::<IommuHeader>() == 24);
const _: () = assert!(size_of::<DmaMap>() == 32);
const _: () = assert!(size_of::<DmaUnmap>() == 24);
const _: () = assert!(size_of::<PairList>() == 16);

/// The capability `id` of an answer whose chain begins at `first`, from its header to the answer's end.
pub(super) fn capability(answer: &[u8], first: u32, id: u16) -> Option<&[u8]> {
    let mut at = first;
    while at != 0 {
        let rest = answer.get(at as usize..)?;
        let (header, _) = CapHeader::read_from_prefix(rest).ok()?;
        if header.id == id {
            return Some(rest);
        }
        // The kernel appends: a chain that goes back is none.
        at = if header.next > at { header.next } else { 0 };
    }
    None
}

/// The list of a capability that is one.
pub(super) fn pairs(capability: &[u8]) -> Option<Vec<(u64, u64)>> {
    let (list, rest) = PairList::read_from_prefix(capability).ok()?;
    let pairs = <[[u64; 2]]>::ref_from_prefix_with_elems(rest, list.count as usize);
    match pairs {
        Ok((pairs, _)) => Some(pairs.iter().map(|[a, b]| (*a, *b)).collect()),
        Err(_) => None,
    }
}

/// The number in a capability that is one (`struct vfio_iommu_type1_info_dma_avail`).
pub(super) fn number(capability: &[u8]) -> Option<u32> {
    let rest = capability.get(size_of::<CapHeader>()..)?;
    u32::read_from_prefix(rest).ok().map(|(number, _)| number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    #[test]
    fn capabilities_are_found_along_the_chain() {
        // A header of 8 bytes; DMA_AVAIL at 8; a list with one pair at 24.
        let mut answer = words(&[0, 0, 3, 24, 65_535, 0]);
        answer.extend(words(&[1, 0, 1, 0, 0x1000, 0, 0x2000, 1]));
        let avail = capability(&answer, 8, CAP_DMA_AVAIL).expect("there");
        assert_eq!(number(avail), Some(65_535));
        let list = capability(&answer, 8, CAP_IOVA_RANGE).expect("there");
        assert_eq!(pairs(list), Some(vec![(0x1000, 0x1_0000_2000)]));
        assert_eq!(capability(&answer, 8, 7), None);
        assert_eq!(capability(&answer, 0, CAP_DMA_AVAIL), None);
    }

    #[test]
    fn malformed_answers_end_the_search() {
        let backwards = words(&[0, 0, 2, 8]);
        assert_eq!(capability(&backwards, 8, 3), None, "a loop");
        assert_eq!(capability(&backwards, 400, 3), None, "outside");
        let short = words(&[1, 0, 5, 0, 1, 0, 2, 0]);
        assert_eq!(pairs(&short), None, "five pairs promised, one there");
    }
}
