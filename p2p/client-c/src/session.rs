//! Sessions: an importer bound to this process.

use std::ffi::c_char;
use std::mem::MaybeUninit;

use peerfs_client::{ImporterSpec, Session};

use crate::failure::{Code, answer, give_back};
use crate::file::{PeerfsFile, map_flags, range, store_table};
use crate::mapping::PeerfsMapping;
use crate::raw;
use crate::values::{PeerfsImporter, PeerfsPiece};

/// An importer bound to this process. It has a thread of its own that answers revocations.
pub struct PeerfsSession(pub(crate) Session);

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
    answer(|| {
        // SAFETY: the caller's promise.
        let directory = unsafe { raw::text(directory, "the directory") }?;
        let spec = match importer {
            None => ImporterSpec::cpu(),
            // SAFETY: the caller's promise.
            Some(importer) => unsafe { importer.spec() }?,
        };
        let place = raw::place(session)?;
        raw::hand_over(place, PeerfsSession(Session::open(directory, spec)?));
        Ok(())
    })
}

/// Gives a session back. It ends with its last mapping.
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_session_close(session: Option<Box<PeerfsSession>>) {
    give_back(session);
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
) -> Code {
    answer(|| {
        let (session, file) = (raw::object(session, "the session")?, raw::object(file, "the file")?);
        let table = session.0.query(&file.0, range(offset, length)?, map_flags(flags)?)?;
        // SAFETY: the caller's promise.
        unsafe { store_table(&table, pieces, count) }
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
        let (session, file) = (raw::object(session, "the session")?, raw::object(file, "the file")?);
        let place = raw::place(mapping)?;
        raw::hand_over(place, PeerfsMapping(session.0.map(&file.0, range(offset, length)?, map_flags(flags)?)?));
        Ok(())
    })
}
