//! Guards: the address of a direct range, for as long as it is valid.

use std::ffi::c_void;
use std::mem::MaybeUninit;

use peerfs_client::{AccessGuard, AddressGuard};

use crate::failure::{Code, Failure, answer, give_back};
use crate::raw;

/// Access to a directly mapped range by address. A revocation waits for it, up to the deadline; after that an access by
/// address raises SIGBUS. It may outlive the mapping, but is not valid any more then.
pub struct PeerfsGuard(pub(crate) Held);

pub(crate) enum Held {
    Range(AccessGuard),
    Addresses(AddressGuard),
}

impl PeerfsGuard {
    fn access(&self) -> &AccessGuard {
        match &self.0 {
            Held::Range(guard) => guard,
            Held::Addresses(guard) => guard,
        }
    }

    fn still_valid(&self) -> bool {
        match &self.0 {
            Held::Range(guard) => guard.still_valid(),
            Held::Addresses(guard) => guard.still_valid(),
        }
    }
}

/// Start address, for reading; NULL for a NULL guard.
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_guard_address(guard: Option<&PeerfsGuard>) -> *const c_void {
    guard.map_or(std::ptr::null(), |guard| guard.access().as_ptr().cast())
}

/// Start address, for writing; NULL when not mapped with PEERFS_MAP_WRITE.
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_guard_address_for_writing(guard: Option<&PeerfsGuard>) -> *mut c_void {
    guard.and_then(|guard| guard.access().as_mut_ptr()).map_or(std::ptr::null_mut(), |address| address.cast())
}

/// Length of the range, bytes; 0 for a NULL guard.
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_guard_length(guard: Option<&PeerfsGuard>) -> usize {
    guard.map_or(0, |guard| guard.access().len())
}

/// The `enum peerfs_path` of bytes that are moved through the guard; PEERFS_PATH_FALLBACK for a NULL guard.
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_guard_path(guard: Option<&PeerfsGuard>) -> u32 {
    guard.map_or(0, |guard| guard.access().path() as u32)
}

/// Loads the word at `index` bytes from the start, a multiple of 8, in one piece, without ever raising SIGBUS:
/// PEERFS_REVOKED when the memory was taken away.
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_guard_load_word(guard: Option<&PeerfsGuard>, index: usize, word: Option<&mut MaybeUninit<u64>>) -> Code {
    answer(|| {
        let loaded = raw::object(guard, "the guard")?.access().load_word(index)?;
        raw::place(word)?.write(loaded.ok_or_else(Failure::revoked)?);
        Ok(())
    })
}

/// Was everything done through the guard until now done on the file's own bytes? What was read before counts only if so.
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_guard_still_valid(guard: Option<&PeerfsGuard>) -> bool {
    guard.is_some_and(PeerfsGuard::still_valid)
}

/// Adds bytes moved by address to what the mapping reports.
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_guard_count(guard: Option<&PeerfsGuard>, bytes: u64) {
    if let Some(guard) = guard {
        guard.access().count(bytes);
    }
}

/// Gives a guard back.
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_guard_release(guard: Option<Box<PeerfsGuard>>) {
    give_back(guard);
}
