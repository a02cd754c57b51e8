//! A device's address for addresses of the processor, for as long as both are valid.

use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::View;
use super::table::FileStretch;
use crate::AccessGuard;

/// An [`AccessGuard`] for a range of addresses. It is not valid any more when the mapping is dropped. What was moved through it counts only if
/// [`AddressGuard::still_valid`] answers `true` afterwards.
pub struct AddressGuard {
    view: Arc<View>,
    stretch: Arc<FileStretch>,
    addresses: Range<u64>,
    guard: AccessGuard,
}

impl AddressGuard {
    /// The stretch has counted the guard.
    pub(super) fn new(view: &Arc<View>, stretch: Arc<FileStretch>, addresses: Range<u64>, guard: AccessGuard) -> Self {
        AddressGuard { view: Arc::clone(view), stretch, addresses, guard }
    }

    /// As [`AccessGuard::still_valid`], and the processor's mapping is the one that it was. About a microsecond; where it no
    /// longer is, the mapping ends here, which waits for a callback of it that runs: hold no lock that callbacks take.
    pub fn still_valid(&self) -> bool {
        let intact = || matches!(self.view.verify(&self.stretch, &self.addresses), Ok(None));
        self.guard.still_valid() && self.view.table.holds(&self.stretch) && intact()
    }
}

impl Drop for AddressGuard {
    fn drop(&mut self) {
        self.stretch.guards.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Deref for AddressGuard {
    type Target = AccessGuard;

    fn deref(&self) -> &AccessGuard {
        &self.guard
    }
}

impl fmt::Debug for AddressGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AddressGuard({:#x}..{:#x})", self.addresses.start, self.addresses.end)
    }
}
