//! Device memory.

use std::mem::MaybeUninit;

use peerfs_client::DeviceMemory;

use crate::failure::{Code, Failure, answer};
use crate::file::{PeerfsFile, map_flags, range};
use crate::mapping::PeerfsMapping;
use crate::raw;
use crate::session::{self, PeerfsSession};

/// Device memory that a session allocated. It ends when it is freed, or with its session; everybody's mappings of it are
/// revoked first.
pub struct PeerfsDevmem(DeviceMemory);

/// The memory behind an argument.
fn of(memory: Option<&PeerfsDevmem>) -> Result<&DeviceMemory, Failure> {
    Ok(&raw::object(memory, "the device memory")?.0)
}

/// Allocates `bytes` of zeroed device memory, rounded up to 4096; `mode` has the permission bits with which others may open
/// it (0600: none but this user). PEERFS_SYSTEM with ENODEV when the mount has none, ENOMEM when it is used up, EDQUOT at a
/// limit, EFBIG for more than the device has.
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_session_allocate_devmem(
    session: Option<&PeerfsSession>,
    bytes: u64,
    mode: u32,
    memory: Option<&mut MaybeUninit<*mut PeerfsDevmem>>,
) -> Code {
    answer(|| {
        let place = raw::place(memory)?;
        raw::hand_over(place, PeerfsDevmem(session::of(session)?.allocate_device_memory_with_mode(bytes, mode)?));
        Ok(())
    })
}

/// Opens device memory that any session allocated, by its number, if its permissions allow. It is mapped, read, written and
/// queried as a file. PEERFS_SYSTEM with what open(2) answers, ENOENT when it was freed.
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_session_open_devmem(
    session: Option<&PeerfsSession>,
    id: u64,
    writable: bool,
    file: Option<&mut MaybeUninit<*mut PeerfsFile>>,
) -> Code {
    answer(|| {
        let place = raw::place(file)?;
        raw::hand_over(place, PeerfsFile(session::of(session)?.open_device_memory(id, writable)?));
        Ok(())
    })
}

/// Frees device memory and gives it back, whatever the answer; where freeing failed it ends with the session.
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_devmem_free(memory: Option<Box<PeerfsDevmem>>) -> Code {
    answer(|| match memory {
        None => Ok(()),
        Some(memory) => Ok(memory.0.free()?),
    })
}

/// Its number N, by which another session opens it; its file is `.peerfs/devmem-N` in the mount. 0 for NULL.
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_devmem_id(memory: Option<&PeerfsDevmem>) -> u64 {
    memory.map_or(0, |memory| memory.0.id())
}

/// The file behind it, open for reading and writing, for everything that takes one; to be closed like any file.
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_devmem_file(memory: Option<&PeerfsDevmem>, file: Option<&mut MaybeUninit<*mut PeerfsFile>>) -> Code {
    answer(|| {
        let place = raw::place(file)?;
        raw::hand_over(place, PeerfsFile(of(memory)?.file().clone()));
        Ok(())
    })
}

/// Size now, bytes.
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_devmem_bytes(memory: Option<&PeerfsDevmem>, bytes: Option<&mut MaybeUninit<u64>>) -> Code {
    answer(|| {
        raw::place(bytes)?.write(of(memory)?.bytes()?);
        Ok(())
    })
}

/// Is it in main memory at present, because the device had no room? It is served as before then, but by fallback.
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_devmem_is_migrated(memory: Option<&PeerfsDevmem>, migrated: Option<&mut MaybeUninit<bool>>) -> Code {
    answer(|| {
        raw::place(migrated)?.write(of(memory)?.is_migrated()?);
        Ok(())
    })
}

/// Grows it to `bytes`; the new part is zero. Mappings stay, where it need not move. As peerfs_session_allocate_devmem, and
/// EINVAL for fewer bytes than it has.
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_devmem_grow(memory: Option<&PeerfsDevmem>, bytes: u64) -> Code {
    answer(|| Ok(of(memory)?.grow(bytes)?))
}

/// Maps a range (`length` 0: to the end) for the session that allocated it, as peerfs_session_map does a file's.
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_devmem_map(
    memory: Option<&PeerfsDevmem>,
    offset: u64,
    length: u64,
    flags: u32,
    mapping: Option<&mut MaybeUninit<*mut PeerfsMapping>>,
) -> Code {
    answer(|| {
        let place = raw::place(mapping)?;
        raw::hand_over(place, PeerfsMapping(of(memory)?.map(range(offset, length)?, map_flags(flags)?)?));
        Ok(())
    })
}
