//! Files: plain I/O, queries and the administrator's revocation.

use std::ffi::{c_char, c_void};
use std::fs::OpenOptions;
use std::mem::MaybeUninit;
use std::ops::Bound;

use peerfs_client::{DecisionTable, File, MapFlags};

use crate::failure::{Code, Failure, answer, give_back};
use crate::raw;
use crate::values::PeerfsPiece;

/// An open file. Its plain reads and writes go past the page cache.
pub struct PeerfsFile(pub(crate) File);

/// Opens an existing file, for writing too if wanted.
///
/// # Safety
/// Strings end with NUL; pointers are valid or NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn peerfs_file_open(
    path: *const c_char,
    writable: bool,
    file: Option<&mut MaybeUninit<*mut PeerfsFile>>,
) -> Code {
    answer(|| {
        // SAFETY: the caller's promise.
        let path = unsafe { raw::text(path, "the path") }?;
        let place = raw::place(file)?;
        raw::hand_over(place, PeerfsFile(File::open_with(path, OpenOptions::new().read(true).write(writable))?));
        Ok(())
    })
}

/// Gives a file back. Mappings of it live on.
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_file_close(file: Option<Box<PeerfsFile>>) {
    give_back(file);
}

/// Reads through the filesystem until the buffer is full or the file ends; stores the bytes read.
///
/// # Safety
/// The buffer has `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn peerfs_file_read(
    file: Option<&PeerfsFile>,
    offset: u64,
    buffer: *mut c_void,
    length: usize,
    done: Option<&mut MaybeUninit<usize>>,
) -> Code {
    answer(|| {
        // SAFETY: the caller's promise.
        let target = unsafe { raw::target(buffer, length) }?;
        let place = raw::place(done)?;
        place.write(raw::object(file, "the file")?.0.read_at(offset, target)?);
        Ok(())
    })
}

/// Writes all bytes through the filesystem.
///
/// # Safety
/// The buffer has `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn peerfs_file_write(file: Option<&PeerfsFile>, offset: u64, buffer: *const c_void, length: usize) -> Code {
    answer(|| {
        // SAFETY: the caller's promise.
        let source = unsafe { raw::source(buffer, length) }?;
        Ok(raw::object(file, "the file")?.0.write_at(offset, source)?)
    })
}

/// The decision table of a range for an importer known by name (NULL: `cpu`); nothing changes. `length` 0 is to the end of
/// the file. `count` is the room in `pieces`, and becomes how many there are.
///
/// # Safety
/// Strings end with NUL; `pieces` has room for `count`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn peerfs_file_query(
    file: Option<&PeerfsFile>,
    importer: *const c_char,
    offset: u64,
    length: u64,
    flags: u32,
    pieces: *mut PeerfsPiece,
    count: Option<&mut usize>,
) -> Code {
    answer(|| {
        let importer = match importer.is_null() {
            true => "",
            // SAFETY: the caller's promise.
            false => unsafe { raw::text(importer, "the importer's name") }?,
        };
        let file = &raw::object(file, "the file")?.0;
        let table = file.query(range(offset, length)?, map_flags(flags)?, importer)?;
        // SAFETY: the caller's promise.
        unsafe { store_table(&table, pieces, count) }
    })
}

/// Revokes every direct mapping of a range, of all processes (`length` 0: to the end); stores how many grants that were.
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_file_revoke(
    file: Option<&PeerfsFile>,
    offset: u64,
    length: u64,
    grants: Option<&mut MaybeUninit<u64>>,
) -> Code {
    answer(|| {
        let place = raw::place(grants)?;
        place.write(raw::object(file, "the file")?.0.revoke(range(offset, length)?)?.grants);
        Ok(())
    })
}

/// # Safety
/// `pieces` has room for `count`.
pub(crate) unsafe fn store_table(
    table: &DecisionTable,
    pieces: *mut PeerfsPiece,
    count: Option<&mut usize>,
) -> Result<(), Failure> {
    let found: Vec<PeerfsPiece> = table.segments.iter().map(PeerfsPiece::from).collect();
    // SAFETY: the caller's promise.
    unsafe { raw::store(&found, pieces, count) }
}

pub(crate) fn map_flags(flags: u32) -> Result<MapFlags, Failure> {
    MapFlags::from_bits(flags).ok_or_else(|| Failure::argument("a flag"))
}

pub(crate) fn range(offset: u64, length: u64) -> Result<(Bound<u64>, Bound<u64>), Failure> {
    let end = match length {
        0 => Bound::Unbounded,
        length => Bound::Excluded(offset.checked_add(length).ok_or_else(|| Failure::argument("the range"))?),
    };
    Ok((Bound::Included(offset), end))
}
