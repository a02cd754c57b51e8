//! `image:` - a regular file or a kernel block device, with O_DIRECT where it can.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use peerfs_sys::{BUFFER_ALIGN, Direction, Engine};

use crate::opening::{Locked, OpenMode, Opening};
use crate::ringfile::{RingFile, raw};
use crate::{BlockDevice, DeviceError, DeviceInfo, EventSink, Io, IoBuf, Ticket};

/// A file or block device that holds a volume. Locked against other processes while any
/// descriptor of its open file description lives.
#[derive(Debug)]
pub struct ImageDevice {
    file: RingFile,
    lock: File,
}

impl ImageDevice {
    /// Opens and locks what is at `path`, waiting for the lock at most `lock_wait`.
    ///
    /// # Errors
    /// [`DeviceError::Unusable`]: not there, no file or block device, empty, in use by another
    /// process, or refused by the system.
    pub fn open(path: &Path, mode: OpenMode, lock_wait: Duration) -> Result<Self, DeviceError> {
        let deadline = Instant::now() + lock_wait;
        let opening = Opening { scheme: "image", path, mode, deadline, takes_characters: false };
        let Locked { mut file, lock, with: mut direct_io } = opening.open_locked(|flags| open_direct(&opening, flags))?;
        let size_bytes = opening.size(&mut file)?;
        let engine = opening.engine()?;
        let file = Arc::new(file);
        if direct_io && !probe(&opening, &engine, &file)? {
            direct_io = false;
        }
        if !direct_io {
            tracing::warn!(device = opening.name(), "O_DIRECT is not supported here: using the page cache, at twice the memory");
        }
        let info = DeviceInfo { name: opening.name(), backend: "image", size_bytes, direct_io };
        Ok(ImageDevice {
            file: RingFile { engine, file, info: Arc::new(info), read_only: !opening.is_writable(), durable: true },
            lock,
        })
    }

    /// The engine that moves its blocks; a [`crate::Cmb`] over it should share it.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.file.engine
    }

    /// Another descriptor of what is locked: the lock lasts until it is closed too.
    ///
    /// # Errors
    /// What dup(2) answers.
    pub fn lock_fd(&self) -> io::Result<OwnedFd> {
        Ok(self.lock.try_clone()?.into())
    }
}

crate::ringfile::delegate!(ImageDevice);

/// Opens for direct I/O where that is possible, and says whether it was.
fn open_direct(opening: &Opening<'_>, flags: i32) -> io::Result<(File, bool)> {
    match opening.open_with(flags | libc::O_DIRECT) {
        Err(err) if err.raw_os_error() == Some(libc::EINVAL) => opening.open_with(flags).map(|file| (file, false)),
        opened => opened.map(|file| (file, true)),
    }
}

/// Tries a direct read. False: refused as such, and direct I/O is now off.
fn probe(opening: &Opening<'_>, engine: &Arc<Engine>, file: &Arc<File>) -> Result<bool, DeviceError> {
    let buf = engine.buffer(BUFFER_ALIGN);
    let (outcome, _) = engine.submit(Direction::Read, file, 0, buf).wait();
    if outcome.errno != Some(libc::EINVAL) {
        return Ok(true);
    }
    fcntl(&**file, FcntlArg::F_SETFL(OFlag::empty())).map_err(|errno| {
        let errno = raw(&errno.into());
        opening.unusable(format!("cannot leave direct I/O: error {errno}"))
    })?;
    Ok(false)
}
