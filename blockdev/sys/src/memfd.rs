//! Memory files: windows, which other processes get to map, and memory that stays ours.
//!
//! Whoever holds a descriptor of a memfd may by default reopen it with more
//! access, seal it (and so keep us from truncating it) or grow it. A window is
//! made so that none of this works: mode 0, sealed against growth and against
//! further seals, but never against shrinking, because truncation is the cut.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::{Mode, fchmod};

use crate::lease;

/// The memory of one window, as a file. The daemon never keeps it mapped.
#[derive(Debug)]
pub struct WindowFile {
    /// Opened anew: the kernel does not count the descriptor of memfd_create(2) among the holders.
    file: File,
    length: u64,
}

impl WindowFile {
    /// A zeroed window of `length` bytes.
    ///
    /// # Errors
    /// What memfd_create(2), ftruncate(2), fchmod(2) and fcntl(2) answer.
    pub fn create(length: u64) -> io::Result<Self> {
        WindowFile::sealed(length, SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL)
    }

    /// A zeroed window that nothing can truncate, as udmabuf demands: it cannot be cut.
    ///
    /// # Errors
    /// As [`WindowFile::create`].
    pub fn create_fixed(length: u64) -> io::Result<Self> {
        WindowFile::sealed(length, SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL)
    }

    fn sealed(length: u64, seals: SealFlag) -> io::Result<Self> {
        let made = sealed_memfd("peerfs-window", length, seals)?;
        let file = File::from(reopen(&made, true)?);
        Ok(WindowFile { file, length })
    }

    /// Size in bytes at creation.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// A new open file description with exactly the access named.
    ///
    /// # Errors
    /// What open(2) of `/proc/self/fd` answers.
    pub fn reopen(&self, writable: bool) -> io::Result<OwnedFd> {
        reopen(&self.file, writable)
    }

    /// Our own descriptor once more, for whoever keeps the window on our behalf: it does not count as a holder.
    ///
    /// # Errors
    /// What dup(2) answers.
    pub fn duplicate(&self) -> io::Result<OwnedFd> {
        self.file.try_clone().map(OwnedFd::from)
    }

    /// Somebody else has the window open or mapped.
    ///
    /// # Errors
    /// What fcntl(2) answers.
    pub fn is_held(&self) -> io::Result<bool> {
        lease::is_held(&self.file)
    }

    /// Takes every page away from every mapping and descriptor, at once and for good: the
    /// file is sealed against growing again.
    ///
    /// # Errors
    /// What ftruncate(2) answers; no holder can bring an error about.
    pub fn truncate_to_zero(&self) -> io::Result<()> {
        self.file.set_len(0)
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }
}

/// A memory file that only this process uses: backing store of a `mem:` device or of a buffer pool.
///
/// Requests on it complete in line, where the kernel lets them, instead of on a worker thread.
///
/// # Errors
/// What memfd_create(2), ftruncate(2) and fchmod(2) answer.
pub fn private_memfd(name: &str, length: u64) -> io::Result<File> {
    let seals = SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
    let file = sealed_memfd(name, length, seals)?;
    // io_uring hands I/O on a regular file to a worker thread unless the file promises not to
    // block and, for writes, is open for direct I/O: to memory both are formalities. The
    // descriptor of memfd_create(2) itself cannot be given O_DIRECT; older kernels refuse it here too.
    let in_line = libc::O_NONBLOCK | libc::O_DIRECT;
    let opened = reopen_with(&file, true, in_line).or_else(|_| reopen_with(&file, true, libc::O_NONBLOCK))?;
    Ok(File::from(opened))
}

/// A memfd with mode 0, `length` zero bytes and these seals.
pub(crate) fn sealed_memfd(name: &str, length: u64, seals: SealFlag) -> io::Result<File> {
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
    let file = File::from(memfd_create(name, flags)?);
    fchmod(&file, Mode::empty())?;
    file.set_len(length)?;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file)
}

/// Opens the file behind `file` anew, through procfs.
pub(crate) fn reopen(file: &File, writable: bool) -> io::Result<OwnedFd> {
    reopen_with(file, writable, 0)
}

fn reopen_with(file: &File, writable: bool, flags: i32) -> io::Result<OwnedFd> {
    let open = || {
        OpenOptions::new()
            .read(true)
            .write(writable)
            .custom_flags(libc::O_CLOEXEC | flags)
            .open(format!("/proc/self/fd/{}", file.as_raw_fd()))
            .map(OwnedFd::from)
    };
    match open() {
        // Mode 0 stops an owner without CAP_DAC_OVERRIDE too. Lifting it for a moment opens
        // nothing new: such an owner shares its uid with whoever could use the moment.
        Err(err) if err.raw_os_error() == Some(libc::EACCES) => {
            fchmod(file, Mode::S_IRUSR | Mode::S_IWUSR)?;
            let opened = open();
            fchmod(file, Mode::empty())?;
            opened
        }
        opened => opened,
    }
}
