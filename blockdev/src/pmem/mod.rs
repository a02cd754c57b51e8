//! `pmem:` - a file on a DAX filesystem, or a device-dax device: blocks in persistent memory.
//!
//! Writes go out of the processor's caches before they are answered, so a barrier has
//! nothing left to do. A file behind a page cache (`nodax`) is for tests, and for trying
//! things out: it is mapped alike, and a barrier is fdatasync(2).

mod dax;
mod memory;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use peerfs_sys::PersistentMapping;

use crate::opening::{Locked, Opening};
use crate::{BlockDevice, BlockMemory, DeviceError, DeviceEvents, DeviceInfo, MappedDevice, OpenMode};

use memory::PmemMemory;

/// What is mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Medium {
    /// Persistent memory; anything else is refused.
    Dax,
    /// Any file or block device, through the page cache.
    PageCache,
}

/// An open volume in persistent memory, locked against other processes.
#[derive(Debug)]
pub struct PmemDevice {
    /// The blocks, as a device.
    pub device: Arc<dyn BlockDevice>,
    /// The blocks, as memory.
    pub memory: Arc<dyn BlockMemory>,
    /// The lock lasts until this is closed too.
    pub lock: OwnedFd,
}

/// What is mapped, and how much of it.
struct Mapped {
    file: File,
    mapping: PersistentMapping,
    is_file: bool,
}

impl PmemDevice {
    /// Opens, locks and maps what is at `path`, waiting for the lock at most `lock_wait`.
    ///
    /// # Errors
    /// [`DeviceError::Unusable`]: not there, no file or device, empty, in use by another process, not persistent memory
    /// though it must be, or refused by the system.
    pub fn open(path: &Path, medium: Medium, mode: OpenMode, lock_wait: Duration) -> Result<Self, DeviceError> {
        let opening = opening(path, mode, Instant::now() + lock_wait);
        let (mapped, lock) = map(&opening, medium)?;
        let events = Arc::new(DeviceEvents::default());
        let info = DeviceInfo {
            name: opening.name(),
            backend: "pmem",
            size_bytes: mapped.mapping.length() as u64,
            direct_io: medium == Medium::Dax,
        };
        let memory: Arc<dyn BlockMemory> = Arc::new(PmemMemory::new(opening.name(), mapped, events.clone()));
        Ok(PmemDevice { device: Arc::new(MappedDevice::new(memory.clone(), info, mode, events)), memory, lock: lock.into() })
    }
}

fn opening(path: &Path, mode: OpenMode, deadline: Instant) -> Opening<'_> {
    Opening { scheme: "pmem", path, mode, deadline, takes_characters: true }
}

fn map(opening: &Opening<'_>, medium: Medium) -> Result<(Mapped, File), DeviceError> {
    let Locked { mut file, lock, with: () } = opening.open_locked(|flags| opening.open_with(flags).map(|file| (file, ())))?;
    let kind = file.metadata().map_err(|err| opening.unusable(format!("cannot be examined: {err}")))?.file_type();
    let size = match kind.is_char_device() {
        true => dax::size_bytes(&file).map_err(|reason| opening.unusable(reason))?,
        false => opening.size(&mut file)?,
    };
    let length = usize::try_from(size).map_err(|_| opening.unusable(format!("{size} bytes are more than can be mapped")))?;
    let mapping = match medium {
        Medium::Dax => PersistentMapping::map_dax(&file, length, opening.is_writable()),
        Medium::PageCache => PersistentMapping::map_cached(&file, length, opening.is_writable()),
    };
    let mapping = mapping.map_err(|err| opening.unusable(why_not(&err, opening.path, kind.is_block_device())))?;
    Ok((Mapped { file, mapping, is_file: !kind.is_char_device() }, lock))
}

/// Why it is not mapped, and what to do.
fn why_not(err: &io::Error, path: &Path, is_block_device: bool) -> String {
    let path = path.display();
    match err.kind() {
        io::ErrorKind::Unsupported if is_block_device => format!(
            "the kernel has a page cache before this block device ({err}): make a filesystem on it, mount that with -o dax \
             and use a file there, or make it a /dev/daxX.Y (ndctl create-namespace -m devdax), or use image:{path}"
        ),
        io::ErrorKind::Unsupported => format!(
            "not on a DAX filesystem ({err}): use image:{path}, or, to try things out through the page cache, pmem:{path},nodax"
        ),
        _ => format!("cannot be mapped: {err}"),
    }
}
