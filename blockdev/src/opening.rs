//! Opening a file or device for a volume, locked against other processes.

use std::fs::{File, FileType, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use peerfs_sys::Engine;

use crate::{BLOCK_BYTES, DeviceError};
use crate::{lock_holder, lock_wait, loop_device};

/// What a device is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenMode {
    /// Shared lock; writes answer EROFS.
    ReadOnly,
    /// Exclusive lock.
    ReadWrite,
}

/// The parameters of one open.
pub(crate) struct Opening<'a> {
    /// `image` or `pmem`.
    pub(crate) scheme: &'static str,
    pub(crate) path: &'a Path,
    pub(crate) mode: OpenMode,
    pub(crate) deadline: Instant,
    /// A character device may be what is wanted.
    pub(crate) takes_characters: bool,
}

/// An open file, locked against other processes.
pub(crate) struct Locked<T> {
    pub(crate) file: File,
    /// Keeps everybody else out, by whatever name: another descriptor of the file, or one of the file below a loop device.
    pub(crate) lock: File,
    /// What came with opening it.
    pub(crate) with: T,
}

impl Opening<'_> {
    pub(crate) fn name(&self) -> String {
        format!("{}:{}", self.scheme, self.path.display())
    }

    pub(crate) fn unusable(&self, reason: String) -> DeviceError {
        DeviceError::Unusable { device: self.name(), reason }
    }

    pub(crate) fn is_writable(&self) -> bool {
        self.mode == OpenMode::ReadWrite
    }

    /// What `open` opens with the flags that it is given, once its lock is ours.
    pub(crate) fn open_locked<T>(&self, open: impl Fn(i32) -> io::Result<(File, T)>) -> Result<Locked<T>, DeviceError> {
        let below = loop_device::file_below(self.path);
        lock_wait::until(self.deadline, || self.try_open_locked(&open, below.as_deref()))?.ok_or_else(|| {
            let holder = lock_holder::holder(self.path).or_else(|| lock_holder::holder(below.as_deref()?));
            self.unusable(match holder {
                Some(holder) => format!("in use by {holder}: unmount it first"),
                None => "in use by another process: unmount it first (fuser or lsof on the path names the process)".into(),
            })
        })
    }

    /// `None`: somebody else has it.
    fn try_open_locked<T>(
        &self,
        open: impl Fn(i32) -> io::Result<(File, T)>,
        below: Option<&Path>,
    ) -> Result<Option<Locked<T>>, DeviceError> {
        let (file, with) = match open(self.exclusive()?) {
            Ok(opened) => opened,
            Err(err) if err.raw_os_error() == Some(libc::EBUSY) => return Ok(None),
            Err(err) => return Err(self.unusable(format!("cannot be opened: {err}"))),
        };
        // Whoever may use the loop device may not always use the file below it: then only the device is locked.
        let lock = match below.and_then(|below| self.open_for_lock(below)) {
            Some(lock) => Ok(lock),
            None => file.try_clone(),
        };
        let lock = lock.map_err(|err| self.unusable(format!("its lock cannot be had: {err}")))?;
        let locked = self.lock(&file)? && self.lock(&lock)?;
        Ok(locked.then_some(Locked { file, lock, with }))
    }

    /// Some filesystems lock exclusively only what is open for writing.
    fn open_for_lock(&self, path: &Path) -> Option<File> {
        let opened = OpenOptions::new().read(true).write(self.is_writable()).open(path).or_else(|_| File::open(path));
        opened
            .inspect_err(|error| tracing::warn!(path = %path.display(), %error, "the file below the loop device is not locked"))
            .ok()
    }

    /// False: somebody else has it.
    fn lock(&self, file: &File) -> Result<bool, DeviceError> {
        let locked = match self.mode {
            OpenMode::ReadOnly => file.try_lock_shared(),
            OpenMode::ReadWrite => file.try_lock(),
        };
        match locked {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(err)) => Err(self.unusable(format!("cannot be locked: {err}"))),
        }
    }

    /// Open flags for this kind of file: a block device that is mounted or part of something else
    /// is refused by O_EXCL.
    fn exclusive(&self) -> Result<i32, DeviceError> {
        let kind = self.kind()?;
        let characters = kind.is_char_device() && self.takes_characters;
        if kind.is_block_device() && self.is_writable() {
            Ok(libc::O_EXCL)
        } else if kind.is_block_device() || kind.is_file() || characters {
            Ok(0)
        } else {
            let device = if self.takes_characters { "device of blocks or DAX" } else { "block device" };
            Err(self.unusable(format!("is neither a regular file nor a {device}")))
        }
    }

    fn kind(&self) -> Result<FileType, DeviceError> {
        self.path.metadata().map(|metadata| metadata.file_type()).map_err(|err| match err.kind() {
            io::ErrorKind::NotFound => {
                self.unusable(format!("does not exist: make it with `peerfs mkfs {}:PATH --size SIZE`", self.scheme))
            }
            _ => self.unusable(format!("cannot be examined: {err}")),
        })
    }

    pub(crate) fn open_with(&self, flags: i32) -> io::Result<File> {
        OpenOptions::new().read(true).write(self.is_writable()).custom_flags(flags | libc::O_CLOEXEC).open(self.path)
    }

    /// An engine that moves bytes for the device.
    pub(crate) fn engine(&self) -> Result<Arc<Engine>, DeviceError> {
        Engine::new().map_err(|err| {
            self.unusable(format!(
                "io_uring is not available ({err}): it needs Linux 5.19 or later \
                 and kernel.io_uring_disabled=0"
            ))
        })
    }

    /// Size of a file or block device, bytes.
    pub(crate) fn size(&self, file: &mut File) -> Result<u64, DeviceError> {
        let end = file.seek(SeekFrom::End(0)).map_err(|err| self.unusable(format!("has no size: {err}")))?;
        match end / BLOCK_BYTES * BLOCK_BYTES {
            0 => Err(self.unusable(format!("is only {end} bytes long: give it a size, for example with `truncate -s 1G`"))),
            size => Ok(size),
        }
    }
}
