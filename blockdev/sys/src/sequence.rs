//! The page of sequence numbers that clients map read-only.
//!
//! One number per slot tells a client whether what it was granted is still
//! valid. The file is sealed in size, so neither side can fault on it, and has
//! mode 0, so a reader cannot become a writer.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::fcntl::SealFlag;

use crate::mapping::Mapping;
use crate::memfd::{reopen, sealed_memfd};

/// A writer's view of a page of sequence numbers.
pub struct SequencePage {
    file: File,
    mapping: Mapping,
}

impl SequencePage {
    /// A new page with room for `slots` numbers, all zero.
    ///
    /// # Errors
    /// What memfd_create(2), fcntl(2) and mmap(2) answer.
    pub fn create(slots: usize) -> io::Result<Self> {
        let length = (slots.max(1) * 8).next_multiple_of(4096);
        let seals = SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
        Self::map(sealed_memfd("peerfs-sequence", length as u64, seals)?)
    }

    /// The writer's view of a page made elsewhere, from [`SequencePage::writer_fd`].
    ///
    /// # Errors
    /// What fstat(2) and mmap(2) answer; `InvalidInput` for a file that can shrink.
    pub fn from_writer(fd: OwnedFd) -> io::Result<Self> {
        let file = File::from(fd);
        let seals = nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_GET_SEALS)?;
        if seals & libc::F_SEAL_SHRINK == 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Self::map(file)
    }

    fn map(file: File) -> io::Result<Self> {
        let length = usize::try_from(file.metadata()?.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        let mapping = Mapping::shared(&file, length)?;
        Ok(SequencePage { file, mapping })
    }

    /// How many numbers it has.
    pub fn slots(&self) -> usize {
        self.mapping.len() / 8
    }

    /// Publishes `value` in `slot` (release order). A slot that does not exist is ignored.
    pub fn store(&self, slot: usize, value: u64) {
        if let Some(cell) = self.cell(slot) {
            cell.store(value, Ordering::Release);
        }
    }

    /// Adds one to `slot` and says what it was before; `None` when there is no such slot.
    pub fn bump(&self, slot: usize) -> Option<u64> {
        Some(self.cell(slot)?.fetch_add(1, Ordering::AcqRel))
    }

    /// The number in `slot`; `None` when there is no such slot.
    pub fn load(&self, slot: usize) -> Option<u64> {
        Some(self.cell(slot)?.load(Ordering::Acquire))
    }

    /// A descriptor for a reader.
    ///
    /// # Errors
    /// What open(2) of `/proc/self/fd` answers.
    pub fn reader_fd(&self) -> io::Result<OwnedFd> {
        reopen(&self.file, false)
    }

    /// A descriptor for another trusted writer.
    ///
    /// # Errors
    /// What dup(2) answers.
    pub fn writer_fd(&self) -> io::Result<OwnedFd> {
        Ok(self.file.try_clone()?.into())
    }

    fn cell(&self, slot: usize) -> Option<&AtomicU64> {
        if slot >= self.slots() {
            return None;
        }
        // SAFETY: the slot lies inside the mapping, is aligned to 8 bytes, lives as long as self,
        // cannot be truncated (sealed), and is only ever accessed atomically.
        Some(unsafe { AtomicU64::from_ptr(self.mapping.ptr().as_ptr().cast::<u64>().add(slot)) })
    }
}

impl std::fmt::Debug for SequencePage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SequencePage({} slots)", self.slots())
    }
}
