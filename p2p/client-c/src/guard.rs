//! Guards: the address of a direct range, for as long as it is valid.

use std::ffi::c_void;

use peerfs_client::AccessGuard;

use crate::failure::give_back;

/// Access to a directly mapped range by address. A revocation waits for it, up to the deadline; after that an access by
/// address raises SIGBUS.
pub struct PeerfsGuard(pub(crate) AccessGuard);

/// Start address, for reading; NULL for a NULL guard.
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_guard_address(guard: Option<&PeerfsGuard>) -> *const c_void {
    guard.map_or(std::ptr::null(), |guard| guard.0.as_ptr().cast())
}

/// Start address, for writing; NULL when not mapped with PEERFS_MAP_WRITE.
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_guard_address_for_writing(guard: Option<&PeerfsGuard>) -> *mut c_void {
    guard.and_then(|guard| guard.0.as_mut_ptr()).map_or(std::ptr::null_mut(), |address| address.cast())
}

/// Was everything done through the guard until now done on the file's own bytes? What was read before counts only if so.
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_guard_still_valid(guard: Option<&PeerfsGuard>) -> bool {
    guard.is_some_and(|guard| guard.0.still_valid())
}

/// Adds bytes moved by address to what the mapping reports.
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_guard_count(guard: Option<&PeerfsGuard>, bytes: u64) {
    if let Some(guard) = guard {
        guard.0.count(bytes);
    }
}

/// Gives a guard back.
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_guard_release(guard: Option<Box<PeerfsGuard>>) {
    give_back(guard);
}
