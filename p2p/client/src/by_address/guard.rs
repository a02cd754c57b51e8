//! A device's address for addresses of the processor, for as long as both are valid.

use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::AddressMapping;
use super::table::FileStretch;
use crate::AccessGuard;

/// An [`AccessGuard`] for a range of addresses. What was moved through it counts only if
/// [`AddressGuard::still_valid`] answers `true` afterwards.
pub struct AddressGuard<'m> {
    of: &'m AddressMapping,
    stretch: Arc<FileStretch>,
    addresses: Range<u64>,
    guard: AccessGuard,
}

impl<'m> AddressGuard<'m> {
    /// The stretch has counted the guard.
    pub(super) fn new(of: &'m AddressMapping, stretch: Arc<FileStretch>, addresses: Range<u64>, guard: AccessGuard) -> Self {
        AddressGuard { of, stretch, addresses, guard }
    }

    /// As [`AccessGuard::still_valid`], and the processor's mapping is the one that it was. About a microsecond.
    pub fn still_valid(&self) -> bool {
        self.guard.still_valid() && self.of.table.holds(&self.stretch) && self.of.verify(&self.stretch, &self.addresses).is_ok()
    }
}

impl Drop for AddressGuard<'_> {
    fn drop(&mut self) {
        self.stretch.guards.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Deref for AddressGuard<'_> {
    type Target = AccessGuard;

    fn deref(&self) -> &AccessGuard {
        &self.guard
    }
}

impl fmt::Debug for AddressGuard<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AddressGuard({:#x}..{:#x})", self.addresses.start, self.addresses.end)
    }
}
