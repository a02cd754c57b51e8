//! Mappings: moving bytes that never raise SIGBUS, atomic operations, revocations.

use std::ffi::c_void;
use std::mem::MaybeUninit;

use peerfs_client::{AtomicWord, Mapping, Reason};

use crate::callback::revoke_callback;
use crate::failure::{Code, Failure, answer, end_and_give_back};
use crate::file::store_pieces;
use crate::guard::{Held, PeerfsGuard};
use crate::raw;
use crate::values::{PeerfsMoved, PeerfsPiece, PeerfsPin, RevokeCallback, milliseconds};

/// A mapped range of a file.
pub struct PeerfsMapping(pub(crate) Mapping);

/// The mapping behind an argument.
fn of(mapping: Option<&PeerfsMapping>) -> Result<&Mapping, Failure> {
    Ok(&raw::object(mapping, "the mapping")?.0)
}

/// Ends a mapping and gives it back, whatever the answer. Stores what has moved through it, unless `moved` is NULL. Waits for
/// a callback of the mapping that runs, which may use the mapping until it returns; see "Callbacks" above.
///
/// # Safety
/// The mapping is not given back by another thread too.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn peerfs_mapping_unmap(mapping: *mut PeerfsMapping, moved: Option<&mut MaybeUninit<PeerfsMoved>>) -> Code {
    let end = |mapping: &PeerfsMapping| {
        raw::tell(moved, mapping.0.end()?.into());
        Ok(())
    };
    // SAFETY: the caller's promise.
    unsafe { end_and_give_back(mapping, end) }
}

/// The server's number of the mapping, as in revocations and `peerfs mappings`; 0 for a NULL mapping.
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_mapping_id(mapping: Option<&PeerfsMapping>) -> u64 {
    mapping.map_or(0, |mapping| mapping.0.id())
}

/// After a piece was refused because it is PEERFS_REASON_BUSY: milliseconds after which it is worth mapping again, else 0.
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_mapping_retry_after_ms(mapping: Option<&PeerfsMapping>) -> u32 {
    mapping.and_then(|mapping| mapping.0.retry_after()).map_or(0, milliseconds)
}

/// What has moved through the mapping so far.
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_mapping_moved(mapping: Option<&PeerfsMapping>, moved: Option<&mut MaybeUninit<PeerfsMoved>>) -> Code {
    answer(|| {
        raw::place(moved)?.write(of(mapping)?.moved().into());
        Ok(())
    })
}

/// Tells the server what has moved since the last report; unmapping does so too.
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_mapping_report(mapping: Option<&PeerfsMapping>) -> Code {
    answer(|| Ok(of(mapping)?.report()?))
}

/// The range in the file, bytes.
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_mapping_range(
    mapping: Option<&PeerfsMapping>,
    start: Option<&mut MaybeUninit<u64>>,
    end: Option<&mut MaybeUninit<u64>>,
) -> Code {
    answer(|| {
        let range = of(mapping)?.range();
        raw::tell(start, range.start);
        raw::tell(end, range.end);
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
        // SAFETY: the caller's promise.
        unsafe { store_pieces(of(mapping)?.segments(), pieces, count) }
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
        let pinned = of(mapping)?.pins();
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
        let reasons = of(mapping)?.fallback_reasons();
        let code = |reason: Option<Reason>| reason.map_or(0, Reason::code);
        let found = reasons.into_iter().find(|(known, _)| code(*known) == reason);
        raw::tell(bytes, found.map_or(0, |(_, bytes)| bytes));
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
        raw::tell(moved, of(mapping)?.read_at(offset, target)?.into());
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
        raw::tell(moved, of(mapping)?.write_at(offset, source)?.into());
        Ok(())
    })
}

/// Calls back with `data`, on the session's own thread, when part of the mapping is revoked, before that is acknowledged. The
/// importer has to have stopped, or to hold a guard, when the callback returns. A revocation that came before is not told:
/// an access finds out. `data` has to live until peerfs_mapping_unmap() has returned, after which nothing calls back.
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_mapping_on_revoke(mapping: Option<&PeerfsMapping>, callback: RevokeCallback, data: *mut c_void) -> Code {
    answer(|| {
        of(mapping)?.on_revoke(revoke_callback(callback, data)?);
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
        let place = raw::place(guard)?;
        raw::hand_over(place, PeerfsGuard(Held::Range(of(mapping)?.access(raw::span(offset, length)?)?)));
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
    raw::tell(was, of(mapping)?.fetch_add(offset, value)?);
    Ok(())
}

fn compare_exchange<W: AtomicWord>(
    mapping: Option<&PeerfsMapping>,
    offset: u64,
    (current, wanted): (W, W),
    was: Option<&mut MaybeUninit<W>>,
) -> Result<(), Failure> {
    let found = of(mapping)?.compare_exchange(offset, current, wanted)?;
    raw::tell(was, found.unwrap_or_else(|other| other));
    Ok(())
}
