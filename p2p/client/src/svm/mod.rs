//! Shared virtual memory: a range of a file at one address for the processor and a device.
//!
//! A device with an address width of, say, 40 bits cannot use the addresses that mmap(2)
//! hands out, so a place is searched that suits both. It is taken without ever
//! replacing a mapping, also while other threads map: the search looks at a list that
//! may be out of date, and the kernel decides (MAP_FIXED_NOREPLACE).
//!
//! Structures with absolute pointers in the file then mean the same to both. A
//! revocation ends the device's translations only: the next access faults and maps
//! the same addresses again.

mod search;

pub use search::{Direction, Placement};

use std::fmt;
use std::fs::OpenOptions;
use std::io;
use std::ops::Range;
use std::path::Path;

use peerfs_sys::{AddressMap, CpuMapping, Reservation};

use self::search::{PAGE, find_free};
use crate::cpu::Device;
use crate::{Error, File, MapFlags};

/// Below are addresses that unprivileged programs cannot map (`vm.mmap_min_addr`).
const LOWEST: u64 = 1 << 16;
/// Where user addresses end, whatever the processor could address: what mmap(2) hands out without a hint.
const HIGHEST: u64 = (1 << 47) - PAGE;
/// Room that the stack may yet grow into, and the gap that the kernel keeps below it.
const BELOW_STACK: u64 = 9 << 20;
/// How often another thread may take the place that was found.
const ATTEMPTS: usize = 1000;

/// A range of a file at one address for the processor and a device. Dropping it ends both.
pub struct SharedRange {
    device: Device,
    cpu: CpuMapping,
}

impl SharedRange {
    /// Maps `range` of a file (from a multiple of 4096 on) at a place that suits the processor and the device: inside
    /// `placement`, the device's address width, and free in both address spaces. `flags` are what the device's faults map
    /// with; with [`MapFlags::WRITE`] the processor may write too.
    ///
    /// # Errors
    /// [`Error::AddressSpaceFull`]; [`Error::Address`] for a range or placement that cannot be; what open(2) and mmap(2)
    /// answer.
    pub fn map(
        device: &Device,
        path: impl AsRef<Path>,
        range: Range<u64>,
        flags: MapFlags,
        placement: Placement,
    ) -> Result<SharedRange, Error> {
        let path = path.as_ref();
        let name = path.display().to_string();
        let mut options = OpenOptions::new();
        options.read(true).write(flags.writes());
        // The device's handle keeps the page cache out; the processor's is an ordinary one.
        let (file, ordinary) = (File::open_with(path, &options)?, options.open(path));
        let ordinary = ordinary.map_err(|source| Error::system("open", &name, source))?;
        let length = range.end.saturating_sub(range.start);
        let whole = length.checked_next_multiple_of(PAGE).unwrap_or(0);
        let placement = Placement { high: placement.high.min(device.address_limit()), ..placement };
        let place = reserve_beside(whole, placement, &device.bound())?;
        let address = place.address() as u64;
        // The device's side first: once it is bound, nobody else can bind these addresses.
        device.bind(address, &file, range.start, length, flags)?;
        match CpuMapping::map_in(place, &ordinary, range.start, flags.writes()) {
            Ok(cpu) => Ok(SharedRange { device: device.clone(), cpu }),
            Err(source) => {
                device.unbind(address)?;
                Err(Error::system("map for the processor", &name, source))
            }
        }
    }

    /// The address, for processor and device.
    pub fn address(&self) -> u64 {
        self.cpu.address() as u64
    }

    /// The processor's side.
    pub fn cpu(&self) -> &CpuMapping {
        &self.cpu
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }
}

impl Drop for SharedRange {
    fn drop(&mut self) {
        // The device's side ends first. It is unknown only to a fork child, which has neither.
        let _ = self.device.unbind(self.address());
    }
}

impl fmt::Debug for SharedRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedRange({:#x}, {} bytes)", self.address(), self.cpu.length())
    }
}

/// Takes `length` bytes (whole pages) of free addresses inside the limits; nothing is mapped there yet.
///
/// # Errors
/// [`Error::AddressSpaceFull`] when no place is left; [`Error::Address`] for a length or placement that cannot be; what mmap(2) answers.
pub fn reserve(length: u64, placement: Placement) -> Result<Reservation, Error> {
    reserve_beside(length, placement, &[])
}

/// As [`reserve`], outside of `also_taken`.
fn reserve_beside(length: u64, placement: Placement, also_taken: &[Range<u64>]) -> Result<Reservation, Error> {
    placement.check(length)?;
    let limits = Placement { low: placement.low.max(LOWEST), high: placement.high.min(HIGHEST), ..placement };
    let system = |operation| move |source| Error::system(operation, "the address space", source);
    let map = AddressMap::open().map_err(system("look into"))?;
    for _ in 0..ATTEMPTS {
        let mut taken = taken(&map).map_err(system("look into"))?;
        taken.extend_from_slice(also_taken);
        let full = Error::AddressSpaceFull { length, low: placement.low, high: placement.high };
        let place = find_free(&taken, length, &limits).ok_or(full)?;
        match Reservation::at(place as usize, length as usize) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            answer => return answer.map_err(system("reserve a range of")),
        }
    }
    Err(Error::AddressSpaceFull { length, low: placement.low, high: placement.high })
}

fn taken(map: &AddressMap) -> io::Result<Vec<Range<u64>>> {
    let vmas = map.all()?;
    let grown = |vma: peerfs_sys::Vma| match vma.name.as_deref() {
        Some("[stack]") => vma.addresses.start.saturating_sub(BELOW_STACK)..vma.addresses.end,
        _ => vma.addresses,
    };
    Ok(vmas.into_iter().map(grown).collect())
}

#[cfg(test)]
mod tests;
