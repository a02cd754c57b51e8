//! Mapping by address, the changes of the processor's own mappings that go with it, and finding a place for both.

use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::ops::Range;

use peerfs_client::AddressMapping;
use peerfs_client::svm::{self, Placement};

use crate::failure::{Code, Failure, answer, give_back};
use crate::file::map_flags;
use crate::mapping::tell;
use crate::raw;
use crate::session::PeerfsSession;
use crate::values::{PeerfsMoved, PeerfsPlacement};

/// Addresses of this process that a device reaches too.
pub struct PeerfsAddresses(AddressMapping);

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
        let session = &raw::object(session, "the session")?.0;
        raw::hand_over(place, PeerfsAddresses(session.map_address(address.addr() as u64, length as u64, map_flags(flags)?)?));
        Ok(())
    })
}

/// Ends the device's side and gives it back; the processor's mappings stay.
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_addresses_close(addresses: Option<Box<PeerfsAddresses>>) {
    give_back(addresses);
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
        let done = raw::object(addresses, "the addresses")?.0.read_at(address.addr() as u64, target)?;
        tell(moved, done.into());
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
        let done = raw::object(addresses, "the addresses")?.0.write_at(address.addr() as u64, source)?;
        tell(moved, done.into());
        Ok(())
    })
}

/// munmap(2), the device's side first.
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
        let mapping = &raw::object(addresses, "the addresses")?.0;
        mapping.release(span(address, length)?)?;
        // SAFETY: the caller's promise.
        check(unsafe { libc::munmap(address, length) }, "unmap")?;
        Ok(mapping.renew(span(address, length)?)?)
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
        let mapping = &raw::object(addresses, "the addresses")?.0;
        mapping.release(span(address, length)?)?;
        // SAFETY: the caller's promise.
        let protected = check(unsafe { libc::mprotect(address, length, protection) }, "protect");
        mapping.renew(span(address, length)?)?;
        protected
    })
}

/// mremap(2) with MREMAP_MAYMOVE, the device's side first; it follows to the new addresses.
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
        let mapping = &raw::object(addresses, "the addresses")?.0;
        mapping.release(span(address, old_length)?)?;
        // SAFETY: the caller's promise.
        let moved = unsafe { libc::mremap(address, old_length, new_length, libc::MREMAP_MAYMOVE) };
        let failure = (moved == libc::MAP_FAILED).then(|| Failure::system("move the mapping"));
        mapping.renew(span(address, old_length)?)?;
        if let Some(failure) = failure {
            return Err(failure);
        }
        mapping.renew(span(moved, new_length)?)?;
        place.write(moved);
        Ok(())
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

fn span(address: *mut c_void, length: usize) -> Result<Range<u64>, Failure> {
    let start = address.addr() as u64;
    let end = start.checked_add(length as u64).ok_or_else(|| Failure::argument("the range"))?;
    Ok(start..end)
}

fn check(result: i32, operation: &str) -> Result<(), Failure> {
    match result {
        0 => Ok(()),
        _ => Err(Failure::system(operation)),
    }
}
