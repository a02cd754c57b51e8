//! Mapping by address, the changes of the processor's own mappings that go with it, and finding a place for both.

use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::ops::Range;

use peerfs_client::svm::{self, Placement};
use peerfs_client::{self as client, AddressMapping};

use crate::callback::revoke_callback;
use crate::failure::{Code, Failure, answer, end_and_give_back};
use crate::file::{map_flags, store_pieces};
use crate::guard::{Held, PeerfsGuard};
use crate::raw;
use crate::session::{self, PeerfsSession};
use crate::values::{PeerfsMoved, PeerfsPiece, PeerfsPlacement, PeerfsStretch, RevokeCallback};

/// Addresses of this process that a device reaches too.
pub struct PeerfsAddresses(AddressMapping);

/// The mapping behind an argument.
fn of(addresses: Option<&PeerfsAddresses>) -> Result<&AddressMapping, Failure> {
    Ok(&raw::object(addresses, "the addresses")?.0)
}

/// Maps for the device what the processor has mapped at `length` bytes from `address` on: shared mappings of files of the
/// mount. Where the processor's mapping ends or changes the device's ends too, at the latest before its next access.
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_session_map_address(
    session: Option<&PeerfsSession>,
    address: *const c_void,
    length: usize,
    flags: u32,
    addresses: Option<&mut MaybeUninit<*mut PeerfsAddresses>>,
) -> Code {
    answer(|| {
        let place = raw::place(addresses)?;
        let mapped = session::of(session)?.map_address(address.addr() as u64, length as u64, map_flags(flags)?)?;
        raw::hand_over(place, PeerfsAddresses(mapped));
        Ok(())
    })
}

/// Ends the device's side and gives it back; the processor's mappings stay. Waits for a callback of it that runs, which may
/// use it until it returns; see "Callbacks" above.
///
/// # Safety
/// The addresses are not given back by another thread too.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn peerfs_addresses_close(addresses: *mut PeerfsAddresses) {
    // SAFETY: the caller's promise. Nobody is left to tell of a failure.
    let _ = unsafe { end_and_give_back(addresses, |addresses| Ok(addresses.0.end()?)) };
}

/// What is behind the addresses, in order and without gaps. `count` is the room in `stretches`, and becomes how many there
/// are.
///
/// # Safety
/// `stretches` has room for `count`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn peerfs_addresses_stretches(
    addresses: Option<&PeerfsAddresses>,
    stretches: *mut PeerfsStretch,
    count: Option<&mut usize>,
) -> Code {
    answer(|| {
        let known = of(addresses)?.stretches();
        let found: Vec<PeerfsStretch> = known.iter().map(PeerfsStretch::from).collect();
        // SAFETY: the caller's promise.
        unsafe { raw::store(&found, stretches, count) }
    })
}

/// How each piece of the stretch that has the address was decided when it was mapped; none where it is no file's. `count` is
/// the room in `pieces`, and becomes how many there are.
///
/// # Safety
/// `pieces` has room for `count`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn peerfs_addresses_pieces(
    addresses: Option<&PeerfsAddresses>,
    address: *const c_void,
    pieces: *mut PeerfsPiece,
    count: Option<&mut usize>,
) -> Code {
    answer(|| {
        let known = of(addresses)?.stretches();
        let found = known.iter().find(|stretch| stretch.addresses.contains(&(address.addr() as u64)));
        let segments = match &found.ok_or_else(|| Failure::argument("the address"))?.backing {
            client::Backing::File { segments, .. } => segments.as_slice(),
            _ => &[],
        };
        // SAFETY: the caller's promise.
        unsafe { store_pieces(segments, pieces, count) }
    })
}

/// What has moved through the files' mappings that are alive.
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_addresses_moved(
    addresses: Option<&PeerfsAddresses>,
    moved: Option<&mut MaybeUninit<PeerfsMoved>>,
) -> Code {
    answer(|| {
        raw::place(moved)?.write(of(addresses)?.moved().into());
        Ok(())
    })
}

/// Takes the device's address of a range, as peerfs_mapping_access. While the guard is held, what changes the processor's
/// mapping of the range through the library answers PEERFS_ADDRESS_IN_USE; a change behind the library's back shows in
/// peerfs_guard_still_valid().
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_addresses_access(
    addresses: Option<&PeerfsAddresses>,
    address: *const c_void,
    length: usize,
    guard: Option<&mut MaybeUninit<*mut PeerfsGuard>>,
) -> Code {
    answer(|| {
        let place = raw::place(guard)?;
        raw::hand_over(place, PeerfsGuard(Held::Addresses(of(addresses)?.access(span(address, length)?)?)));
        Ok(())
    })
}

/// Calls back as peerfs_mapping_on_revoke when part of what is mapped at this moment is revoked: call it again for what is
/// renewed later. `data` has to live until peerfs_addresses_close() has returned, after which nothing calls back.
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_addresses_on_revoke(
    addresses: Option<&PeerfsAddresses>,
    callback: RevokeCallback,
    data: *mut c_void,
) -> Code {
    answer(|| {
        of(addresses)?.on_revoke(revoke_callback(callback, data)?);
        Ok(())
    })
}

/// Ends the device's side of every stretch that has one of these addresses, whole, before the program changes the processor's
/// in a way that has no call here. An access answers PEERFS_ADDRESS_CHANGED from now on. PEERFS_ADDRESS_IN_USE while a guard
/// is held there; nothing is ended then.
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_addresses_release(addresses: Option<&PeerfsAddresses>, address: *const c_void, length: usize) -> Code {
    answer(|| Ok(of(addresses)?.release(span(address, length)?)?))
}

/// Takes up again what is mapped at these addresses now.
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_addresses_renew(addresses: Option<&PeerfsAddresses>, address: *const c_void, length: usize) -> Code {
    answer(|| Ok(of(addresses)?.renew(span(address, length)?)?))
}

/// The device reads at an address. PEERFS_ADDRESS_CHANGED when the processor's mapping is another one now.
///
/// # Safety
/// The buffer has `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn peerfs_addresses_read(
    addresses: Option<&PeerfsAddresses>,
    address: *const c_void,
    buffer: *mut c_void,
    length: usize,
    moved: Option<&mut MaybeUninit<PeerfsMoved>>,
) -> Code {
    answer(|| {
        // SAFETY: the caller's promise.
        let target = unsafe { raw::target(buffer, length) }?;
        raw::tell(moved, of(addresses)?.read_at(address.addr() as u64, target)?.into());
        Ok(())
    })
}

/// The device writes at an address, as peerfs_addresses_read.
///
/// # Safety
/// The buffer has `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn peerfs_addresses_write(
    addresses: Option<&PeerfsAddresses>,
    address: *const c_void,
    buffer: *const c_void,
    length: usize,
    moved: Option<&mut MaybeUninit<PeerfsMoved>>,
) -> Code {
    answer(|| {
        // SAFETY: the caller's promise.
        let source = unsafe { raw::source(buffer, length) }?;
        raw::tell(moved, of(addresses)?.write_at(address.addr() as u64, source)?.into());
        Ok(())
    })
}

/// munmap(2), the device's side first; what is left is taken up again.
///
/// # Safety
/// As for munmap(2): nobody uses the memory any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn peerfs_addresses_munmap(
    addresses: Option<&PeerfsAddresses>,
    address: *mut c_void,
    length: usize,
) -> Code {
    answer(|| {
        // SAFETY: the caller's promise.
        let unmap = || check(unsafe { libc::munmap(address, length) }, "unmap");
        of(addresses)?.change(span(address, length)?, unmap)?
    })
}

/// mprotect(2), the device's side first; it is taken up again as far as the new protection allows.
///
/// # Safety
/// As for mprotect(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn peerfs_addresses_mprotect(
    addresses: Option<&PeerfsAddresses>,
    address: *mut c_void,
    length: usize,
    protection: i32,
) -> Code {
    answer(|| {
        // SAFETY: the caller's promise.
        let protect = || check(unsafe { libc::mprotect(address, length, protection) }, "protect");
        of(addresses)?.change(span(address, length)?, protect)?
    })
}

/// mremap(2) with MREMAP_MAYMOVE, the device's side first; it follows to the new addresses. The new address is stored once the
/// mapping has moved, even if the device's side could not be taken up again.
///
/// # Safety
/// As for mremap(2): nobody uses the old addresses any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn peerfs_addresses_mremap(
    addresses: Option<&PeerfsAddresses>,
    address: *mut c_void,
    old_length: usize,
    new_length: usize,
    new_address: Option<&mut MaybeUninit<*mut c_void>>,
) -> Code {
    answer(|| {
        let place = raw::place(new_address)?;
        let mapping = of(addresses)?;
        let remap = || {
            // SAFETY: the caller's promise.
            let moved = unsafe { libc::mremap(address, old_length, new_length, libc::MREMAP_MAYMOVE) };
            if moved == libc::MAP_FAILED {
                return Err(Failure::system("move the mapping"));
            }
            // It has moved, whatever comes now.
            Ok(*place.write(moved))
        };
        let moved = mapping.change(span(address, old_length)?, remap)??;
        Ok(mapping.renew(span(moved, new_length)?)?)
    })
}

/// Reserves `length` bytes (whole pages) of free addresses inside the limits, without access, for a mapping that is to have
/// the same address for the processor and a device: replace it with mmap(2) and MAP_FIXED. It is the caller's to unmap.
/// Nothing that is mapped is ever replaced, whatever other threads map meanwhile.
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_reserve(
    length: usize,
    placement: Option<&PeerfsPlacement>,
    address: Option<&mut MaybeUninit<*mut c_void>>,
) -> Code {
    answer(|| {
        let place = raw::place(address)?;
        let wanted = placement.map_or_else(Placement::default, Placement::from);
        place.write(svm::reserve(length as u64, wanted)?.into_address() as *mut c_void);
        Ok(())
    })
}

fn span(address: *const c_void, length: usize) -> Result<Range<u64>, Failure> {
    raw::span(address.addr() as u64, length as u64)
}

fn check(result: i32, operation: &str) -> Result<(), Failure> {
    match result {
        0 => Ok(()),
        _ => Err(Failure::system(operation)),
    }
}
