//! From addresses to ranges of files: what the address map says, checked against the mount.

use std::fs::OpenOptions;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use peerfs_sys::{AddressMap, Vma, identity};

use super::table::{Entry, FileStretch};
use crate::error::errno;
use crate::{Error, File, MapFlags, Session};

const FOREIGN: &str = "it is no file of the mount";
const PRIVATE: &str = "the mapping is private: it may differ from the file";
const CLOSED: &str = "the processor may not access this memory so";
const UNMAPPED: &str = "nothing is mapped here";
const UNOPENABLE: &str = "the file cannot be opened again with the access that was asked for";

/// Every stretch of the addresses, mapped for the device where that is possible.
pub(super) fn resolve(session: &Session, maps: &AddressMap, addresses: Range<u64>, flags: MapFlags) -> Result<Vec<Entry>, Error> {
    let core = &session.owner.core;
    let system = |source| Error::system("look into the address map for", &core.name, source);
    let device = core.calls.device().map_err(system)?;
    let mut entries = Vec::new();
    let mut at = addresses.start;
    for vma in maps.all().map_err(system)? {
        let part = vma.addresses.start.max(at)..vma.addresses.end.min(addresses.end);
        if part.is_empty() {
            continue;
        }
        if at < part.start {
            entries.push(Entry::Nothing(at..part.start, UNMAPPED));
        }
        at = part.end;
        entries.push(one(session, device, &vma, part, flags)?);
    }
    if at < addresses.end {
        entries.push(Entry::Nothing(at..addresses.end, UNMAPPED));
    }
    map_lost_again(session, &mut entries, flags)?;
    Ok(entries)
}

/// Stretches of one file may lie in one window: mapping a later one then made the server replace the window that an earlier
/// one had, by a larger one that now has room for both.
fn map_lost_again(session: &Session, entries: &mut [Entry], flags: MapFlags) -> Result<(), Error> {
    for entry in entries {
        if let Entry::File(stretch) = entry
            && stretch.mapping.has_lost()
        {
            let mapping = session.map(&stretch.file, stretch.in_file(), flags)?;
            *stretch = Arc::new(stretch.with(mapping));
        }
    }
    Ok(())
}

fn one(session: &Session, device: u64, vma: &Vma, part: Range<u64>, flags: MapFlags) -> Result<Entry, Error> {
    let write = flags.writes();
    if !vma.readable {
        return Ok(Entry::Nothing(part, CLOSED));
    }
    if vma.device != device || vma.inode == 0 {
        return Ok(Entry::Memory(part, FOREIGN));
    }
    if !vma.shared {
        return Ok(Entry::Memory(part, PRIVATE));
    }
    if write && !vma.writable {
        return Ok(Entry::Nothing(part, CLOSED));
    }
    let file = match open_mapped(vma, write) {
        Ok(file) => file,
        // It was changed since the map was read: the next look will see what is there.
        Err(error) if errno(&error) == Some(Errno::ENOENT) => return Ok(Entry::Ended(part)),
        Err(error) if errno(&error) == Some(Errno::EXDEV) => return Ok(Entry::Memory(part, FOREIGN)),
        Err(_) => return Ok(Entry::Memory(part, UNOPENABLE)),
    };
    let file_offset = vma.offset + (part.start - vma.addresses.start);
    let mapping = match session.map(&file, file_offset..file_offset + (part.end - part.start), flags) {
        Ok(mapping) => Arc::new(mapping),
        // Files of the mount that no device can map, such as the ones in its control directory.
        Err(Error::NotPeerfs { .. }) => return Ok(Entry::Memory(part, FOREIGN)),
        Err(error) => return Err(error),
    };
    let identity = (vma.device, vma.inode);
    let stretch = FileStretch { addresses: part, identity, file_offset, file, mapping, guards: AtomicUsize::new(0) };
    Ok(Entry::File(Arc::new(stretch)))
}

/// Opens the file behind a mapping anew. It is named without being opened first, so that nothing but the file itself, on the
/// device that was asked for, is ever opened: opening a device node or a pipe has effects.
fn open_mapped(vma: &Vma, write: bool) -> io::Result<File> {
    let named = name_mapped(vma)?;
    if identity(named.as_fd())? != (vma.device, vma.inode) {
        return Err(Errno::EXDEV.into());
    }
    let path = format!("/proc/self/fd/{}", named.as_raw_fd());
    let opened = File::open_with(&path, OpenOptions::new().read(true).write(write));
    opened.map_err(|error| match error {
        Error::System { source, .. } => source,
        other => io::Error::other(other.to_string()),
    })
}

/// By the mapping itself, which needs CAP_CHECKPOINT_RESTORE; else through a descriptor of ours that is open on the file.
fn name_mapped(vma: &Vma) -> io::Result<std::os::fd::OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let Range { start, end } = vma.addresses;
    match open(format!("/proc/self/map_files/{start:x}-{end:x}").as_str(), flags, Mode::empty()) {
        Err(Errno::EPERM | Errno::EACCES) => {}
        answer => return Ok(answer?),
    }
    for entry in std::fs::read_dir("/proc/self/fd")?.flatten() {
        let Ok(named) = open(&entry.path(), flags, Mode::empty()) else {
            continue;
        };
        if identity(named.as_fd()).is_ok_and(|found| found == (vma.device, vma.inode)) {
            return Ok(named);
        }
    }
    let path = vma.name.as_deref().ok_or(Errno::EACCES)?;
    Ok(open(path, flags, Mode::empty())?)
}
