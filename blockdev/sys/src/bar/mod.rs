//! A PCI BAR: registers, or memory of the device.
//!
//! A driver has one through VFIO, a peer's memory one through sysfs; both are
//! accessed the same way. What the kernel does not let us map (pages that hold the
//! MSI-X table, on old kernels) goes through the device's file, slower but alike.
//!
//! A word access is one access of exactly that width, never merged, split or
//! repeated. A word *store* is preceded by a release fence: whatever this thread
//! wrote to memory before it rings a doorbell, the device sees. Mappings are uncached
//! on both routes, so stores to a BAR arrive in order.

mod area;

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::access::{AccessError, check_inside, check_word};
use crate::dma_range::DmaRange;
use crate::{PAGE, guarded};

use area::Area;

/// A BAR of a device. Units: bytes, from the start of the BAR.
pub struct Bar {
    length: u64,
    /// What is mapped, in order, never overlapping.
    areas: Vec<Area>,
    /// The file that reaches all of it, and where the BAR begins in it.
    file: Option<(Arc<File>, u64)>,
    /// Shared with every range that is lent to another device.
    lent: Arc<()>,
}

impl Bar {
    /// Maps the whole of a `resourceN` file of /sys/bus/pci/devices/ADDRESS.
    ///
    /// # Errors
    /// What open(2) and mmap(2) answer: EINVAL while a kernel driver owns the device.
    pub fn from_sysfs(path: impl AsRef<Path>) -> io::Result<Arc<Bar>> {
        guarded::prepare()?;
        let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_CLOEXEC | libc::O_SYNC).open(path)?;
        let length = file.metadata()?.len();
        let area = Area::map(&file, 0, 0, length)?;
        Ok(Arc::new(Bar { length, areas: vec![area], file: None, lent: Arc::default() }))
    }

    /// Of `length` bytes, beginning at `start` of the device's file, of which the `mappable` ranges may be mapped.
    pub(crate) fn of_device(file: Arc<File>, start: u64, length: u64, mappable: &[(u64, u64)]) -> io::Result<Arc<Bar>> {
        guarded::prepare()?;
        let map = |(offset, length): &(u64, u64)| Area::map(&file, start, *offset, *length);
        let areas = mappable.iter().map(map).collect::<io::Result<Vec<_>>>()?;
        Ok(Arc::new(Bar { length, areas, file: Some((file, start)), lent: Arc::default() }))
    }

    /// Length, bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Bytes that are mapped, not reached through the device's file.
    pub fn mapped_length(&self) -> u64 {
        self.areas.iter().map(Area::length).sum()
    }

    /// Loads a word. A device that is gone may also answer with all ones.
    ///
    /// # Errors
    /// Outside, misaligned, or the device is gone.
    pub fn read_u32(&self, offset: u64) -> Result<u32, AccessError> {
        check_word(offset, 4, self.length)?;
        match self.area(offset, 4) {
            Some(area) => area.load_u32(offset),
            None => self.read_file(offset).map(u32::from_ne_bytes),
        }
    }

    /// As [`Bar::read_u32`], in one access of 8 bytes. Registers that only take 4 want two reads.
    ///
    /// # Errors
    /// Outside, misaligned, or the device is gone.
    pub fn read_u64(&self, offset: u64) -> Result<u64, AccessError> {
        check_word(offset, 8, self.length)?;
        match self.area(offset, 8) {
            Some(area) => area.load_u64(offset),
            None => self.read_file(offset).map(u64::from_ne_bytes),
        }
    }

    /// Stores a word, after everything this thread wrote before.
    ///
    /// # Errors
    /// Outside, misaligned, or the device is gone; none if it goes while the store is on its way.
    pub fn write_u32(&self, offset: u64, value: u32) -> Result<(), AccessError> {
        check_word(offset, 4, self.length)?;
        fence(Ordering::Release);
        match self.area(offset, 4) {
            Some(area) => area.store_u32(offset, value),
            None => self.write_file(offset, &value.to_ne_bytes()),
        }
    }

    /// As [`Bar::write_u32`], in one access of 8 bytes.
    ///
    /// # Errors
    /// Outside, misaligned, or the device is gone.
    pub fn write_u64(&self, offset: u64, value: u64) -> Result<(), AccessError> {
        check_word(offset, 8, self.length)?;
        fence(Ordering::Release);
        match self.area(offset, 8) {
            Some(area) => area.store_u64(offset, value),
            None => self.write_file(offset, &value.to_ne_bytes()),
        }
    }

    /// Copies `target.len()` bytes of device memory from `offset` on, in words of 8 where it can.
    ///
    /// # Errors
    /// Outside, or the device is gone; `target` is then undefined.
    pub fn read(&self, offset: u64, target: &mut [u8]) -> Result<(), AccessError> {
        check_inside(offset, target.len(), self.length)?;
        match self.area(offset, target.len()) {
            Some(area) => area.read(offset, target),
            None => {
                let (file, start) = self.file.as_ref().ok_or(AccessError::Gone)?;
                file.read_exact_at(target, start + offset).map_err(|_| AccessError::Gone)
            }
        }
    }

    /// Copies `source` to device memory at `offset`, in words of 8 where it can.
    ///
    /// # Errors
    /// Outside, or the device is gone; any part may have been written.
    pub fn write(&self, offset: u64, source: &[u8]) -> Result<(), AccessError> {
        check_inside(offset, source.len(), self.length)?;
        match self.area(offset, source.len()) {
            Some(area) => area.write(offset, source),
            None => self.write_file(offset, source),
        }
    }

    /// Whole pages of the BAR, to map for another device.
    ///
    /// # Errors
    /// Outside; `NotMappable` when they are not whole pages or not all mapped.
    pub fn dma_range(self: &Arc<Self>, offset: u64, length: u64) -> Result<DmaRange, AccessError> {
        let bytes = usize::try_from(length).unwrap_or(usize::MAX);
        check_inside(offset, bytes, self.length)?;
        let whole_pages = length > 0 && (offset | length).is_multiple_of(PAGE as u64);
        let area = self.area(offset, bytes).filter(|_| whole_pages);
        let start = area.and_then(|area| area.address(offset)).ok_or(AccessError::NotMappable { offset, length })?;
        Ok(DmaRange::new(start, length, Arc::new((self.clone(), self.lent.clone()))))
    }

    /// Ranges of it may be mapped for another device.
    pub fn is_lent(&self) -> bool {
        Arc::strong_count(&self.lent) > 1
    }

    /// Ends every access by this process, now and later: the device is found gone.
    ///
    /// # Errors
    /// What mmap(2) answers.
    pub(crate) fn let_go(&self) -> io::Result<()> {
        let nothing = File::from(memfd_create(c"peerfs-nothing", MFdFlags::MFD_CLOEXEC)?);
        self.areas.iter().try_for_each(|area| area.let_go(&nothing))
    }

    fn area(&self, offset: u64, length: usize) -> Option<&Area> {
        self.areas.iter().find(|area| area.holds(offset, length))
    }

    fn read_file<const N: usize>(&self, offset: u64) -> Result<[u8; N], AccessError> {
        let mut bytes = [0; N];
        self.read(offset, &mut bytes).map(|()| bytes)
    }

    fn write_file(&self, offset: u64, source: &[u8]) -> Result<(), AccessError> {
        let (file, start) = self.file.as_ref().ok_or(AccessError::Gone)?;
        file.write_all_at(source, start + offset).map_err(|_| AccessError::Gone)
    }
}

impl fmt::Debug for Bar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bar({:#x} bytes, {:#x} mapped)", self.length, self.mapped_length())
    }
}

#[cfg(test)]
mod tests;
