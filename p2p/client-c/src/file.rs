//! Files: plain I/O, queries and the administrator's revocation.

use std::ffi::{c_char, c_void};
use std::fs::OpenOptions;
use std::mem::MaybeUninit;
use std::ops::Bound;

use peerfs_client::{DecisionTable, File, Info, MapFlags, Revoked, Segment};

use crate::failure::{Code, Failure, answer, give_back};
use crate::raw;
use crate::values::{PeerfsPiece, PeerfsRevoked, milliseconds};

/// An open file. Its plain reads and writes go past the page cache.
pub struct PeerfsFile(pub(crate) File);

/// The file behind an argument.
pub(crate) fn of(file: Option<&PeerfsFile>) -> Result<&File, Failure> {
    Ok(&raw::object(file, "the file")?.0)
}

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
        place.write(of(file)?.read_at(offset, target)?);
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
        Ok(of(file)?.write_at(offset, source)?)
    })
}

/// Size of the file, bytes.
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_file_size(file: Option<&PeerfsFile>, bytes: Option<&mut MaybeUninit<u64>>) -> Code {
    answer(|| {
        raw::place(bytes)?.write(of(file)?.size()?);
        Ok(())
    })
}

/// State of the server and of the file: space, mappings, revocations, and the bytes of the file moved directly and by
/// fallback, these also by reason: `file_fallback[n]` is for peerfs_reason_of_bit(n - 1), and `file_fallback[0]` for what
/// was direct when it was mapped, and was revoked since. Importers report to it when they unmap, and when they say so.
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_file_info(file: Option<&PeerfsFile>, info: Option<&mut MaybeUninit<Info>>) -> Code {
    answer(|| {
        raw::place(info)?.write(of(file)?.info()?);
        Ok(())
    })
}

/// Makes a range of `file`, open for writing, share the blocks of `source`, open for reading: nothing is copied until one of
/// the two is written. `length` 0 is to the end of the source; everything in multiples of 4096, but for a range that ends
/// where both files end. Stores the bytes shared, unless `shared` is NULL. Mappings for writing of the source's range and
/// all mappings of the file's range end. PEERFS_SYSTEM with EXDEV when the files are not on one mount, EINVAL when the range
/// is misaligned, beyond the source or overlapping, EISDIR, EBADF, ETXTBSY, EFBIG, ENOSPC.
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_file_reflink_from(
    file: Option<&PeerfsFile>,
    source: Option<&PeerfsFile>,
    source_offset: u64,
    offset: u64,
    length: u64,
    shared: Option<&mut MaybeUninit<u64>>,
) -> Code {
    answer(|| {
        let source = &raw::object(source, "the source")?.0;
        raw::tell(shared, of(file)?.reflink_from(source, source_offset, offset, length)?);
        Ok(())
    })
}

/// The decision table of a range for an importer known by name (NULL: `cpu`); nothing changes. `length` 0 is to the end of
/// the file. `count` is the room in `pieces`, and becomes how many there are. `retry_after_ms`, unless NULL, becomes the
/// milliseconds after which it is worth asking again because something is PEERFS_REASON_BUSY, else 0.
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
    retry_after_ms: Option<&mut MaybeUninit<u32>>,
) -> Code {
    answer(|| {
        let importer = match importer.is_null() {
            true => "",
            // SAFETY: the caller's promise.
            false => unsafe { raw::text(importer, "the importer's name") }?,
        };
        let table = of(file)?.query(range(offset, length)?, map_flags(flags)?, importer)?;
        // SAFETY: the caller's promise.
        unsafe { store_table(&table, pieces, count, retry_after_ms) }
    })
}

/// Revokes every direct mapping of a range, of all processes (`length` 0: to the end). Stores what that did, unless
/// `revoked` is NULL. PEERFS_SYSTEM with EPERM for those who may not.
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_file_revoke(
    file: Option<&PeerfsFile>,
    offset: u64,
    length: u64,
    revoked: Option<&mut MaybeUninit<PeerfsRevoked>>,
) -> Code {
    revoke(file, revoked, |file| Ok(file.revoke(range(offset, length)?)?))
}

/// As peerfs_file_revoke, and takes pins of the range back by force. For the owner of the mount only.
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_file_revoke_pins(
    file: Option<&PeerfsFile>,
    offset: u64,
    length: u64,
    revoked: Option<&mut MaybeUninit<PeerfsRevoked>>,
) -> Code {
    revoke(file, revoked, |file| Ok(file.revoke_pins(range(offset, length)?)?))
}

/// Revokes every direct mapping of the mount that the file is on, as peerfs_file_revoke. For the owner of the mount only.
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_file_revoke_mount(file: Option<&PeerfsFile>, revoked: Option<&mut MaybeUninit<PeerfsRevoked>>) -> Code {
    revoke(file, revoked, |file| Ok(file.revoke_mount()?))
}

/// As peerfs_file_revoke_mount, and takes every pin of the mount back by force.
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_file_revoke_mount_pins(
    file: Option<&PeerfsFile>,
    revoked: Option<&mut MaybeUninit<PeerfsRevoked>>,
) -> Code {
    revoke(file, revoked, |file| Ok(file.revoke_mount_pins()?))
}

/// Revokes one mapping of the mount the file is on, by its number in `peerfs mappings`: for the owner of the mount only.
/// As peerfs_file_revoke; the system's ENOENT where there is no such mapping.
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_file_revoke_mapping(
    file: Option<&PeerfsFile>,
    mapping: u64,
    revoked: Option<&mut MaybeUninit<PeerfsRevoked>>,
) -> Code {
    revoke(file, revoked, |file| Ok(file.revoke_mapping(mapping)?))
}

fn revoke(
    file: Option<&PeerfsFile>,
    revoked: Option<&mut MaybeUninit<PeerfsRevoked>>,
    call: impl FnOnce(&File) -> Result<Revoked, Failure>,
) -> Code {
    answer(|| {
        raw::tell(revoked, call(of(file)?)?.into());
        Ok(())
    })
}

/// # Safety
/// `pieces` has room for `count`.
pub(crate) unsafe fn store_table(
    table: &DecisionTable,
    pieces: *mut PeerfsPiece,
    count: Option<&mut usize>,
    retry_after_ms: Option<&mut MaybeUninit<u32>>,
) -> Result<(), Failure> {
    // SAFETY: the caller's promise.
    unsafe { store_pieces(&table.segments, pieces, count) }?;
    raw::tell(retry_after_ms, table.retry_after.map_or(0, milliseconds));
    Ok(())
}

/// # Safety
/// `pieces` has room for `count`.
pub(crate) unsafe fn store_pieces(
    segments: &[Segment],
    pieces: *mut PeerfsPiece,
    count: Option<&mut usize>,
) -> Result<(), Failure> {
    let found: Vec<PeerfsPiece> = segments.iter().map(PeerfsPiece::from).collect();
    // SAFETY: the caller's promise.
    unsafe { raw::store(&found, pieces, count) }
}

pub(crate) fn map_flags(flags: u32) -> Result<MapFlags, Failure> {
    MapFlags::from_bits(flags).ok_or_else(|| Failure::argument("a flag"))
}

pub(crate) fn range(offset: u64, length: u64) -> Result<(Bound<u64>, Bound<u64>), Failure> {
    let end = match length {
        0 => Bound::Unbounded,
        length => Bound::Excluded(raw::span(offset, length)?.end),
    };
    Ok((Bound::Included(offset), end))
}
