//! Mappings: moving bytes that never raise SIGBUS, atomic operations, revocations.

use std::ffi::c_void;
use std::mem::MaybeUninit;

use peerfs_client::{AtomicWord, Mapping, Reason};

use crate::failure::{Code, Failure, answer};
use crate::guard::PeerfsGuard;
use crate::raw;
use crate::values::{PeerfsMoved, PeerfsPiece, PeerfsPin, PeerfsRevocation, RevokeCallback};

/// A mapped range of a file.
pub struct PeerfsMapping(pub(crate) Mapping);

/// Ends a mapping and gives it back, whatever the answer. Stores what has moved through it, unless `moved` is NULL.
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_mapping_unmap(
    mapping: Option<Box<PeerfsMapping>>,
    moved: Option<&mut MaybeUninit<PeerfsMoved>>,
) -> Code {
    answer(|| {
        let Some(mapping) = mapping else { return Ok(()) };
        let total = mapping.0.unmap()?;
        tell(moved, total.into());
        Ok(())
    })
}

/// The range in the file, bytes.
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_mapping_range(
    mapping: Option<&PeerfsMapping>,
    start: Option<&mut MaybeUninit<u64>>,
    end: Option<&mut MaybeUninit<u64>>,
) -> Code {
    answer(|| {
        let range = raw::object(mapping, "the mapping")?.0.range();
        tell(start, range.start);
        tell(end, range.end);
        Ok(())
    })
}

/// How each piece was decided when it was mapped. `count` is the room in `pieces`, and becomes how many there are.
///
/// # Safety
/// `pieces` has room for `count`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn peerfs_mapping_pieces(
    mapping: Option<&PeerfsMapping>,
    pieces: *mut PeerfsPiece,
    count: Option<&mut usize>,
) -> Code {
    answer(|| {
        let segments = raw::object(mapping, "the mapping")?.0.segments();
        let found: Vec<PeerfsPiece> = segments.iter().map(PeerfsPiece::from).collect();
        // SAFETY: the caller's promise.
        unsafe { raw::store(&found, pieces, count) }
    })
}

/// The pins behind a mapping made with PEERFS_MAP_PIN. `count` is the room in `pins`, and becomes how many there are. A pin
/// lives until its last holder is gone, whoever that is.
///
/// # Safety
/// `pins` has room for `count`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn peerfs_mapping_pins(
    mapping: Option<&PeerfsMapping>,
    pins: *mut PeerfsPin,
    count: Option<&mut usize>,
) -> Code {
    answer(|| {
        let pinned = raw::object(mapping, "the mapping")?.0.pins();
        let found: Vec<PeerfsPin> = pinned.iter().map(PeerfsPin::from).collect();
        // SAFETY: the caller's promise.
        unsafe { raw::store(&found, pins, count) }
    })
}

/// Bytes that fell back so far for a reason (`enum peerfs_reason`), or, for 0, because they were revoked after they had
/// been mapped.
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_mapping_fallback_bytes(
    mapping: Option<&PeerfsMapping>,
    reason: u32,
    bytes: Option<&mut MaybeUninit<u64>>,
) -> Code {
    answer(|| {
        let reasons = raw::object(mapping, "the mapping")?.0.fallback_reasons();
        let code = |reason: Option<Reason>| reason.map_or(0, Reason::code);
        let found = reasons.into_iter().find(|(known, _)| code(*known) == reason);
        tell(bytes, found.map_or(0, |(_, bytes)| bytes));
        Ok(())
    })
}

/// Reads from the file offset on until the buffer is full or the file ends. What is revoked on the way is read through the
/// filesystem. Stores what was read by which path, unless `moved` is NULL.
///
/// # Safety
/// The buffer has `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn peerfs_mapping_read(
    mapping: Option<&PeerfsMapping>,
    offset: u64,
    buffer: *mut c_void,
    length: usize,
    moved: Option<&mut MaybeUninit<PeerfsMoved>>,
) -> Code {
    answer(|| {
        // SAFETY: the caller's promise.
        let target = unsafe { raw::target(buffer, length) }?;
        tell(moved, raw::object(mapping, "the mapping")?.0.read_at(offset, target)?.into());
        Ok(())
    })
}

/// Writes all bytes at the file offset, with the same promise as peerfs_mapping_read.
///
/// # Safety
/// The buffer has `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn peerfs_mapping_write(
    mapping: Option<&PeerfsMapping>,
    offset: u64,
    buffer: *const c_void,
    length: usize,
    moved: Option<&mut MaybeUninit<PeerfsMoved>>,
) -> Code {
    answer(|| {
        // SAFETY: the caller's promise.
        let source = unsafe { raw::source(buffer, length) }?;
        tell(moved, raw::object(mapping, "the mapping")?.0.write_at(offset, source)?.into());
        Ok(())
    })
}

/// A pointer that the caller says may be used on the library's thread.
struct Data(*mut c_void);

// SAFETY: the pointer is not used here, only handed to the caller's function, whose business it is.
unsafe impl Send for Data {}
// SAFETY: as above.
unsafe impl Sync for Data {}

impl Data {
    fn pointer(&self) -> *mut c_void {
        self.0
    }
}

/// Calls back with `data`, on the library's thread, when part of the mapping is revoked, before that is acknowledged. The
/// importer has to have stopped, or to hold a guard, when the callback returns. `data` has to live until the mapping is
/// given back and a callback that runs then has returned.
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_mapping_on_revoke(mapping: Option<&PeerfsMapping>, callback: RevokeCallback, data: *mut c_void) -> Code {
    answer(|| {
        let callback = callback.ok_or_else(|| Failure::argument("the callback"))?;
        let data = Data(data);
        let call = move |revocation: &_| callback(&PeerfsRevocation::from(revocation), data.pointer());
        raw::object(mapping, "the mapping")?.0.on_revoke(call);
        Ok(())
    })
}

/// Takes the address of a directly mapped range. PEERFS_FALLBACK or PEERFS_REVOKED when it is not direct (any more).
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_mapping_access(
    mapping: Option<&PeerfsMapping>,
    offset: u64,
    length: u64,
    guard: Option<&mut MaybeUninit<*mut PeerfsGuard>>,
) -> Code {
    answer(|| {
        let end = offset.checked_add(length).ok_or_else(|| Failure::argument("the range"))?;
        let place = raw::place(guard)?;
        raw::hand_over(place, PeerfsGuard(raw::object(mapping, "the mapping")?.0.access(offset..end)?));
        Ok(())
    })
}

/// Adds to the u64 at the file offset, atomically among all importers, and stores what it was. An error means that nothing
/// was added; after PEERFS_REVOKED map again and repeat.
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_mapping_fetch_add_u64(
    mapping: Option<&PeerfsMapping>,
    offset: u64,
    value: u64,
    was: Option<&mut MaybeUninit<u64>>,
) -> Code {
    answer(|| fetch_add(mapping, offset, value, was))
}

/// As peerfs_mapping_fetch_add_u64.
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_mapping_fetch_add_u32(
    mapping: Option<&PeerfsMapping>,
    offset: u64,
    value: u32,
    was: Option<&mut MaybeUninit<u32>>,
) -> Code {
    answer(|| fetch_add(mapping, offset, value, was))
}

/// Stores `wanted` in the u64 at the file offset if it is `current`, atomically, and stores in `was` what it was.
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_mapping_compare_exchange_u64(
    mapping: Option<&PeerfsMapping>,
    offset: u64,
    current: u64,
    wanted: u64,
    was: Option<&mut MaybeUninit<u64>>,
) -> Code {
    answer(|| compare_exchange(mapping, offset, (current, wanted), was))
}

/// As peerfs_mapping_compare_exchange_u64.
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_mapping_compare_exchange_u32(
    mapping: Option<&PeerfsMapping>,
    offset: u64,
    current: u32,
    wanted: u32,
    was: Option<&mut MaybeUninit<u32>>,
) -> Code {
    answer(|| compare_exchange(mapping, offset, (current, wanted), was))
}

fn fetch_add<W: AtomicWord>(
    mapping: Option<&PeerfsMapping>,
    offset: u64,
    value: W,
    was: Option<&mut MaybeUninit<W>>,
) -> Result<(), Failure> {
    tell(was, raw::object(mapping, "the mapping")?.0.fetch_add(offset, value)?);
    Ok(())
}

fn compare_exchange<W: AtomicWord>(
    mapping: Option<&PeerfsMapping>,
    offset: u64,
    (current, wanted): (W, W),
    was: Option<&mut MaybeUninit<W>>,
) -> Result<(), Failure> {
    let found = raw::object(mapping, "the mapping")?.0.compare_exchange(offset, current, wanted)?;
    tell(was, found.unwrap_or_else(|other| other));
    Ok(())
}

/// Stores a result that the caller may not want.
pub(crate) fn tell<T>(place: Option<&mut MaybeUninit<T>>, value: T) {
    if let Some(place) = place {
        place.write(value);
    }
}
