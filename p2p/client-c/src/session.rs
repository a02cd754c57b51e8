//! Sessions: an importer bound to this process.

use std::ffi::c_char;
use std::mem::MaybeUninit;

use peerfs_client::{ImporterSpec, Session, SessionOptions};

use crate::failure::{Code, Failure, answer, give_back};
use crate::file::{self, PeerfsFile, map_flags, range, store_table};
use crate::mapping::PeerfsMapping;
use crate::raw;
use crate::values::{PeerfsImporter, PeerfsPiece, PeerfsSessionOptions, milliseconds};

/// An importer bound to this process. It has a thread of its own that answers revocations.
pub struct PeerfsSession(pub(crate) Session);

/// The session behind an argument.
pub(crate) fn of(session: Option<&PeerfsSession>) -> Result<&Session, Failure> {
    Ok(&raw::object(session, "the session")?.0)
}

/// Fills in the software importer `cpu`: no limits, honours revocation. A start for a device of one's own.
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_importer_cpu(importer: Option<&mut MaybeUninit<PeerfsImporter>>) -> Code {
    answer(|| {
        raw::place(importer)?.write(PeerfsImporter::cpu());
        Ok(())
    })
}

/// Registers an importer (NULL: the software importer `cpu`) with the mount that `directory` is in.
///
/// # Safety
/// Strings end with NUL; pointers are valid or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn peerfs_session_open(
    directory: *const c_char,
    importer: Option<&PeerfsImporter>,
    session: Option<&mut MaybeUninit<*mut PeerfsSession>>,
) -> Code {
    // SAFETY: the caller's promise.
    unsafe { peerfs_session_open_with(directory, importer, None, session) }
}

/// As peerfs_session_open; `options` may be NULL.
///
/// # Safety
/// Strings end with NUL; pointers are valid or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn peerfs_session_open_with(
    directory: *const c_char,
    importer: Option<&PeerfsImporter>,
    options: Option<&PeerfsSessionOptions>,
    session: Option<&mut MaybeUninit<*mut PeerfsSession>>,
) -> Code {
    answer(|| {
        // SAFETY: the caller's promise.
        let directory = unsafe { raw::text(directory, "the directory") }?;
        let spec = match importer {
            None => ImporterSpec::cpu(),
            // SAFETY: the caller's promise.
            Some(importer) => unsafe { importer.spec() }?,
        };
        let options = options.map_or_else(SessionOptions::default, SessionOptions::from);
        let place = raw::place(session)?;
        raw::hand_over(place, PeerfsSession(Session::open_with(directory, spec, options)?));
        Ok(())
    })
}

/// Gives a session back. It ends with its last mapping and device memory.
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_session_close(session: Option<Box<PeerfsSession>>) {
    give_back(session);
}

/// Number of the session's context, never used again on this volume; 0 for a NULL session.
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_session_context_id(session: Option<&PeerfsSession>) -> u64 {
    session.map_or(0, |session| session.0.context_id())
}

/// How long an importer may take to stop after a revocation, milliseconds; 0 for a NULL session.
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_session_deadline_ms(session: Option<&PeerfsSession>) -> u32 {
    session.map_or(0, |session| milliseconds(session.0.deadline()))
}

/// Revocations that the session has heard of.
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_session_revocations(session: Option<&PeerfsSession>) -> u64 {
    session.map_or(0, |session| session.0.revocations())
}

/// The decision table of a range for this session's importer, as peerfs_file_query.
///
/// # Safety
/// `pieces` has room for `count`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn peerfs_session_query(
    session: Option<&PeerfsSession>,
    file: Option<&PeerfsFile>,
    offset: u64,
    length: u64,
    flags: u32,
    pieces: *mut PeerfsPiece,
    count: Option<&mut usize>,
    retry_after_ms: Option<&mut MaybeUninit<u32>>,
) -> Code {
    answer(|| {
        let table = of(session)?.query(file::of(file)?, range(offset, length)?, map_flags(flags)?)?;
        // SAFETY: the caller's promise.
        unsafe { store_table(&table, pieces, count, retry_after_ms) }
    })
}

/// Maps a range (`length` 0: to the end of the file). What cannot be direct falls back, which is no error.
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_session_map(
    session: Option<&PeerfsSession>,
    file: Option<&PeerfsFile>,
    offset: u64,
    length: u64,
    flags: u32,
    mapping: Option<&mut MaybeUninit<*mut PeerfsMapping>>,
) -> Code {
    answer(|| {
        let place = raw::place(mapping)?;
        let mapped = of(session)?.map(file::of(file)?, range(offset, length)?, map_flags(flags)?)?;
        raw::hand_over(place, PeerfsMapping(mapped));
        Ok(())
    })
}
