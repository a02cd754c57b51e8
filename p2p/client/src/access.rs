//! Addresses for importers, for as long as they are valid.

use std::fmt;

use peerfs_abi::Path;

use crate::grant::Entered;
use crate::{Attestation, Error};

/// Access to a directly mapped range by address. What was read counts only if
/// [`AccessGuard::still_valid`] answers `true` *afterwards*.
///
/// Keep it short: a revocation waits for it, and at the deadline the memory goes
/// away under it, which raises SIGBUS on the next access by address.
pub struct AccessGuard {
    entered: Entered,
    offset: u64,
    length: usize,
}

impl AccessGuard {
    pub(crate) fn new(entered: Entered, offset: u64, length: usize) -> AccessGuard {
        AccessGuard { entered, offset, length }
    }

    /// Length of the range, bytes.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Never: an empty range is refused.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Which way bytes go that are moved through the guard.
    pub fn path(&self) -> Path {
        self.entered.grant().path()
    }

    /// Start address, for reading. Meaningless once the guard is dropped.
    pub fn as_ptr(&self) -> *const u8 {
        self.start().cast_const()
    }

    /// Start address, for writing; `None` when not mapped with `WRITE`.
    pub fn as_mut_ptr(&self) -> Option<*mut u8> {
        self.entered.window().writable().then(|| self.start())
    }

    /// Was everything done through the guard until now done on the file's own bytes? Costs nanoseconds.
    /// Also `false` when the server is gone.
    pub fn still_valid(&self) -> bool {
        matches!(self.entered.still_valid(), Ok(true))
    }

    /// Adds bytes moved by address to the mapping's attestation.
    pub fn count(&self, bytes: u64) {
        let mut moved = Attestation::default();
        moved.count(self.path(), bytes);
        self.entered.grant().shared.counters.add(moved);
    }

    /// Loads the byte at `index` by address: after a cut this raises SIGBUS.
    ///
    /// # Errors
    /// [`Error::Range`] outside the guard.
    pub fn load(&self, index: usize) -> Result<u8, Error> {
        self.check(index, 1)?;
        let window = self.entered.window();
        window.load_volatile(self.position(index)).map_err(|_| self.outside(index, 1))
    }

    /// Loads the word at `index` (a multiple of 8) in one piece; `None` where a cut took the memory away.
    ///
    /// # Errors
    /// [`Error::Range`] outside the guard or when misaligned.
    pub fn load_word(&self, index: usize) -> Result<Option<u64>, Error> {
        self.check(index, 8)?;
        let position = self.position(index);
        if !position.is_multiple_of(8) {
            return Err(self.outside(index, 8));
        }
        Ok(self.entered.window().load_word(position / 8).ok())
    }

    /// Stores a word at `index` (a multiple of 8) by address: after a cut this raises SIGBUS.
    ///
    /// # Errors
    /// [`Error::Range`] outside the guard or when misaligned, [`Error::ReadOnly`] when not mapped with `WRITE`.
    pub fn store(&self, index: usize, value: u64) -> Result<(), Error> {
        self.check(index, 8)?;
        if !self.entered.window().writable() {
            return Err(Error::ReadOnly);
        }
        let window = self.entered.window();
        window.store_volatile(self.position(index), value).map_err(|_| self.outside(index, 8))
    }

    fn position(&self, index: usize) -> usize {
        self.offset as usize + index
    }

    fn start(&self) -> *mut u8 {
        self.entered.window().as_ptr().wrapping_add(self.position(0))
    }

    fn check(&self, index: usize, length: usize) -> Result<(), Error> {
        match index.checked_add(length) {
            Some(end) if end <= self.length => Ok(()),
            _ => Err(self.outside(index, length)),
        }
    }

    fn outside(&self, index: usize, length: usize) -> Error {
        Error::Range {
            start: index as u64,
            end: index.saturating_add(length) as u64,
            limit_start: 0,
            limit_end: self.length as u64,
        }
    }
}

impl fmt::Debug for AccessGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AccessGuard({} bytes, {})", self.length, self.path())
    }
}
