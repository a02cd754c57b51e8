//! One I/O address space: the groups in it and what is mapped.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::dma_range::DmaRange;

use super::dma::{DmaAccess, DmaMapping};
use super::error::{VfioError, os};
use super::group::Group;
use super::iova::IovaAllocator;
use super::{abi, ioctl};

const CONTAINER: &str = "/dev/vfio/vfio";

/// Mappings of at least this many bytes start at a multiple of it, so that the IOMMU may use large pages.
const LARGE_PAGE_BYTES: u64 = 2 << 20;

/// What the kernel says about an I/O address space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IommuInfo {
    /// Page sizes of the IOMMU: bit n stands for 2^n bytes.
    pub page_sizes: u64,
    /// Addresses that may be mapped.
    pub iova_ranges: Vec<RangeInclusive<u64>>,
    /// How many more mappings may be made (`dma_entry_limit`), if the kernel says.
    pub mappings_left: Option<u32>,
}

/// A VFIO container with a type1v2 IOMMU.
#[derive(Debug)]
pub struct VfioContainer {
    file: File,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Left only by groups whose last device the kernel took away: the mappings live as long as there is a group.
    groups: Vec<Arc<Group>>,
    /// There once a group has brought its IOMMU.
    iova: Option<IovaAllocator>,
    /// How many IOMMUs there have been. One goes, with all its mappings, when the last group is taken away.
    generation: u64,
}

impl VfioContainer {
    /// An empty one. Nothing can be mapped before a device is opened.
    ///
    /// # Errors
    /// `Os` when /dev/vfio/vfio cannot be opened; `Unsupported`.
    pub fn open() -> Result<Arc<Self>, VfioError> {
        // The standard library opens with O_CLOEXEC.
        let file = OpenOptions::new().read(true).write(true).open(CONTAINER);
        let file = file.map_err(os(format!("open {CONTAINER} (is the module vfio loaded?)")))?;
        let version = ioctl::api_version(&file).map_err(os("ask VFIO for its version"))?;
        let has_type1v2 = ioctl::has_extension(&file, abi::TYPE1V2_IOMMU).map_err(os("ask VFIO for its IOMMU types"))?;
        match version == abi::API_VERSION && has_type1v2 {
            true => Ok(Arc::new(VfioContainer { file, state: Mutex::default() })),
            false => Err(VfioError::Unsupported { version }),
        }
    }

    /// What the kernel says about it now.
    ///
    /// # Errors
    /// `Os` before a device is open; `NoIovaRanges`.
    pub fn info(&self) -> Result<IommuInfo, VfioError> {
        let (header, answer) = ioctl::iommu_info(&self.file).map_err(os("ask for the IOMMU's address ranges"))?;
        let first = if header.flags & abi::IOMMU_CAPS != 0 { header.cap_offset } else { 0 };
        let ranges = abi::capability(&answer, first, abi::CAP_IOVA_RANGE).and_then(abi::pairs);
        Ok(IommuInfo {
            page_sizes: header.page_sizes,
            iova_ranges: ranges.ok_or(VfioError::NoIovaRanges)?.into_iter().map(|(first, last)| first..=last).collect(),
            mappings_left: abi::capability(&answer, first, abi::CAP_DMA_AVAIL).and_then(abi::number),
        })
    }

    /// Makes memory reachable for all devices of the container, at addresses of our choice.
    ///
    /// # Errors
    /// `NoIommu` before a device is open, and after the last has been taken away; `IovaExhausted`, `LockedMemory`, `NoMappingLeft`, `Os`.
    pub fn map_dma(self: &Arc<Self>, range: DmaRange, access: DmaAccess) -> Result<DmaMapping, VfioError> {
        self.map_dma_below(range, access, u64::MAX)
    }

    /// As [`VfioContainer::map_dma`], at addresses up to `highest`: what a device with fewer address bits reaches.
    ///
    /// # Errors
    /// As [`VfioContainer::map_dma`].
    pub fn map_dma_below(self: &Arc<Self>, range: DmaRange, access: DmaAccess, highest: u64) -> Result<DmaMapping, VfioError> {
        let length = range.length();
        let align = if length >= LARGE_PAGE_BYTES { LARGE_PAGE_BYTES } else { crate::PAGE as u64 };
        let take = |allocator: &mut IovaAllocator| {
            allocator.allocate(length, align, highest).ok_or(VfioError::IovaExhausted { length, highest })
        };
        self.map(range, access, take)
    }

    /// As [`VfioContainer::map_dma`], at `iova`.
    ///
    /// # Errors
    /// `IovaTaken`, and those of [`VfioContainer::map_dma`].
    pub fn map_dma_at(self: &Arc<Self>, range: DmaRange, iova: u64, access: DmaAccess) -> Result<DmaMapping, VfioError> {
        let length = range.length();
        let take = |allocator: &mut IovaAllocator| match allocator.reserve(iova, length) {
            true => Ok(iova),
            false => Err(VfioError::IovaTaken { iova, length }),
        };
        self.map(range, access, take)
    }

    fn map(
        self: &Arc<Self>,
        range: DmaRange,
        access: DmaAccess,
        take: impl FnOnce(&mut IovaAllocator) -> Result<u64, VfioError>,
    ) -> Result<DmaMapping, VfioError> {
        let (iova, generation) = {
            let mut state = self.state();
            (take(state.iova.as_mut().ok_or(VfioError::NoIommu)?)?, state.generation)
        };
        let length = range.length();
        match ioctl::map_dma(&self.file, &range, iova, access.flags()) {
            Ok(()) => Ok(DmaMapping::new(self.clone(), range, iova, generation)),
            Err(error) => {
                self.release(iova, length);
                Err(self.map_error(error, iova, length))
            }
        }
    }

    /// I/O addresses, aligned to 2 MiB, that no mapping of this container gets: for a device's own memory.
    ///
    /// # Errors
    /// No device is open yet, or there is no such range.
    pub fn reserve(&self, length: u64) -> Result<u64, VfioError> {
        let mut state = self.state();
        let allocator = state.iova.as_mut().ok_or(VfioError::NoIommu)?;
        allocator.allocate(length, LARGE_PAGE_BYTES, u64::MAX).ok_or(VfioError::IovaExhausted { length, highest: u64::MAX })
    }

    fn map_error(&self, error: io::Error, iova: u64, length: u64) -> VfioError {
        match error.raw_os_error() {
            Some(libc::ENOMEM) => VfioError::LockedMemory { length },
            Some(libc::ENOSPC) => VfioError::NoMappingLeft,
            Some(libc::EINVAL) if !self.has_iommu() => VfioError::NoIommu,
            _ => os(format!("map {length:#x} bytes at I/O address {iova:#x}"))(error),
        }
    }

    /// Takes a mapping away. On success no device reaches the memory any more.
    pub(super) fn unmap(&self, iova: u64, length: u64, generation: u64) -> Result<(), VfioError> {
        let error = match ioctl::unmap_dma(&self.file, iova, length) {
            Ok(unmapped) if unmapped == length => return Ok(()),
            Ok(unmapped) => VfioError::Unmap { iova, length, unmapped },
            Err(error) => os(format!("unmap {length:#x} bytes at I/O address {iova:#x}"))(error),
        };
        let state = self.state();
        match state.generation == generation && self.has_iommu() {
            true => Err(error),
            // It went with its IOMMU.
            false => Ok(()),
        }
    }

    /// EINVAL is the answer of a container that has none.
    fn has_iommu(&self) -> bool {
        !matches!(ioctl::iommu_info(&self.file), Err(error) if error.raw_os_error() == Some(libc::EINVAL))
    }

    /// Lets addresses be used again.
    pub(super) fn release(&self, iova: u64, length: u64) {
        if let Some(allocator) = &mut self.state().iova {
            allocator.release(iova, length);
        }
    }

    /// The group with this number, brought into the container if it is not in it.
    pub(super) fn group(&self, number: u32) -> Result<Arc<Group>, VfioError> {
        let mut state = self.state();
        state.groups.retain(|group| group.is_alive());
        if let Some(group) = state.groups.iter().find(|group| group.number() == number) {
            return Ok(group.clone());
        }
        let group = Arc::new(Group::join(number, &self.file)?);
        if !self.has_iommu() {
            ioctl::set_iommu(&self.file, abi::TYPE1V2_IOMMU).map_err(|error| match error.raw_os_error() {
                Some(libc::EPERM) => VfioError::NoInterruptRemapping,
                _ => os(format!("set up the IOMMU of group {number}"))(error),
            })?;
            state.generation += 1;
        }
        let ranges = self.info()?.iova_ranges;
        match &mut state.iova {
            // Another group may reserve addresses of its own.
            Some(allocator) => allocator.restrict(&ranges),
            none => *none = Some(IovaAllocator::new(&ranges)),
        }
        state.groups.push(group.clone());
        Ok(group)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
