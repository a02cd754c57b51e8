//! `image:` - a regular file or a kernel block device, with O_DIRECT where it can.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use peerfs_sys::{BUFFER_ALIGN, Direction, Engine};

use crate::lock_wait;
use crate::ringfile::{RingFile, raw};
use crate::{BLOCK_BYTES, BlockDevice, DeviceError, DeviceInfo, EventSink, Io, IoBuf, Ticket};

/// What an image is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenMode {
    /// Shared lock; writes answer EROFS.
    ReadOnly,
    /// Exclusive lock.
    ReadWrite,
}

/// A file or block device that holds a volume. Locked against other processes while any
/// descriptor of its open file description lives.
#[derive(Debug)]
pub struct ImageDevice {
    file: RingFile,
}

impl ImageDevice {
    /// Opens and locks what is at `path`, waiting for the lock at most `lock_wait`.
    ///
    /// # Errors
    /// [`DeviceError::Unusable`]: not there, no file or block device, empty, in use by another
    /// process, or refused by the system.
    pub fn open(path: &Path, mode: OpenMode, lock_wait: Duration) -> Result<Self, DeviceError> {
        let opening = Opening { path, mode, deadline: Instant::now() + lock_wait };
        let (mut file, mut direct_io) = opening.open_locked()?;
        let size_bytes = opening.size(&mut file)?;
        let engine = Engine::new().map_err(|err| {
            opening.unusable(format!(
                "io_uring is not available ({err}): it needs Linux 5.19 or later \
                 and kernel.io_uring_disabled=0"
            ))
        })?;
        let file = Arc::new(file);
        if direct_io && !opening.probe(&engine, &file)? {
            direct_io = false;
        }
        if !direct_io {
            tracing::warn!(device = opening.name(), "O_DIRECT is not supported here: using the page cache, at twice the memory");
        }
        let info = DeviceInfo { name: opening.name(), backend: "image", size_bytes, direct_io };
        Ok(ImageDevice {
            file: RingFile { engine, file, info: Arc::new(info), read_only: mode == OpenMode::ReadOnly, durable: true },
        })
    }

    /// The engine that moves its blocks; a [`crate::Cmb`] over it should share it.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.file.engine
    }

    /// Another descriptor of the same open file description: the lock lasts until it is closed too.
    ///
    /// # Errors
    /// What dup(2) answers.
    pub fn lock_fd(&self) -> io::Result<OwnedFd> {
        Ok(self.file.file.try_clone()?.into())
    }
}

crate::ringfile::delegate!(ImageDevice);

/// The parameters of one open.
struct Opening<'a> {
    path: &'a Path,
    mode: OpenMode,
    deadline: Instant,
}

impl Opening<'_> {
    fn name(&self) -> String {
        format!("image:{}", self.path.display())
    }

    fn unusable(&self, reason: String) -> DeviceError {
        DeviceError::Unusable { device: self.name(), reason }
    }

    /// The file, locked, and whether it is open for direct I/O.
    fn open_locked(&self) -> Result<(File, bool), DeviceError> {
        lock_wait::until(self.deadline, || self.try_open_locked())?.ok_or_else(|| {
            self.unusable(
                "in use by another process: unmount it first \
                 (fuser or lsof on the path names the process)"
                    .into(),
            )
        })
    }

    /// `None`: somebody else has it.
    fn try_open_locked(&self) -> Result<Option<(File, bool)>, DeviceError> {
        let exclusive = self.kind()?;
        let opened = match self.open_with(exclusive | libc::O_DIRECT) {
            Err(err) if err.raw_os_error() == Some(libc::EINVAL) => self.open_with(exclusive).map(|file| (file, false)),
            opened => opened.map(|file| (file, true)),
        };
        let (file, direct) = match opened {
            Ok(opened) => opened,
            Err(err) if err.raw_os_error() == Some(libc::EBUSY) => return Ok(None),
            Err(err) => return Err(self.unusable(format!("cannot be opened: {err}"))),
        };
        let locked = match self.mode {
            OpenMode::ReadOnly => file.try_lock_shared(),
            OpenMode::ReadWrite => file.try_lock(),
        };
        match locked {
            Ok(()) => Ok(Some((file, direct))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(err)) => Err(self.unusable(format!("cannot be locked: {err}"))),
        }
    }

    /// Open flags for this kind of file: a block device that is mounted or part of something else
    /// is refused by O_EXCL.
    fn kind(&self) -> Result<i32, DeviceError> {
        let kind = match self.path.metadata() {
            Ok(metadata) => metadata.file_type(),
            Err(err) if err.kind() == io::ErrorKind::NotFound => {
                return Err(self.unusable("does not exist: make it with `peerfs mkfs image:PATH --size SIZE`".into()));
            }
            Err(err) => return Err(self.unusable(format!("cannot be examined: {err}"))),
        };
        if kind.is_block_device() && self.mode == OpenMode::ReadWrite {
            Ok(libc::O_EXCL)
        } else if kind.is_block_device() || kind.is_file() {
            Ok(0)
        } else {
            Err(self.unusable("is neither a regular file nor a block device".into()))
        }
    }

    fn open_with(&self, flags: i32) -> io::Result<File> {
        OpenOptions::new()
            .read(true)
            .write(self.mode == OpenMode::ReadWrite)
            .custom_flags(flags | libc::O_CLOEXEC)
            .open(self.path)
    }

    fn size(&self, file: &mut File) -> Result<u64, DeviceError> {
        let end = file.seek(SeekFrom::End(0)).map_err(|err| self.unusable(format!("has no size: {err}")))?;
        match end / BLOCK_BYTES * BLOCK_BYTES {
            0 => Err(self.unusable(format!("is only {end} bytes long: give it a size, for example with `truncate -s 1G`"))),
            size => Ok(size),
        }
    }

    /// Tries a direct read. False: refused as such, and direct I/O is now off.
    fn probe(&self, engine: &Arc<Engine>, file: &Arc<File>) -> Result<bool, DeviceError> {
        let buf = engine.buffer(BUFFER_ALIGN);
        let (outcome, _) = engine.submit(Direction::Read, file, 0, buf).wait();
        if outcome.errno != Some(libc::EINVAL) {
            return Ok(true);
        }
        fcntl(&**file, FcntlArg::F_SETFL(OFlag::empty())).map_err(|errno| {
            let errno = raw(&errno.into());
            self.unusable(format!("cannot leave direct I/O: error {errno}"))
        })?;
        Ok(false)
    }
}
