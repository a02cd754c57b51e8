//! Where the kernel describes its devices, and how it is asked to change them.
//!
//! The places are parameters and the changes a trait, so that every refusal and every failure midway is tested on trees
//! of plain files.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{PciAddress, PciError};

/// What changes something in the kernel, or depends on who else has something open.
pub trait Kernel: fmt::Debug + Send + Sync {
    /// Writes a value to an attribute of sysfs, in one write(2).
    ///
    /// # Errors
    /// What the kernel answers: what the attribute does may fail.
    fn write_attribute(&self, path: &Path, value: &str) -> io::Result<()>;

    /// Opens a block device or a VFIO group so that nobody else can open it exclusively while the result is open.
    ///
    /// # Errors
    /// EBUSY: somebody else has it open exclusively (a mounted filesystem, for one); others as open(2).
    fn claim(&self, path: &Path) -> io::Result<OwnedFd>;
}

/// The running kernel.
#[derive(Debug)]
pub struct LinuxKernel;

impl Kernel for LinuxKernel {
    fn write_attribute(&self, path: &Path, value: &str) -> io::Result<()> {
        OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
    }

    fn claim(&self, path: &Path) -> io::Result<OwnedFd> {
        Ok(OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(path)?.into())
    }
}

/// A machine's sysfs, procfs and device nodes.
#[derive(Debug, Clone)]
pub struct Host {
    sys: PathBuf,
    proc: PathBuf,
    dev: PathBuf,
    pub(super) kernel: Arc<dyn Kernel>,
}

impl Host {
    /// The machine this runs on.
    pub fn system() -> Self {
        Host::at("/sys", "/proc", "/dev", Arc::new(LinuxKernel))
    }

    /// What lies at these places and behaves like `kernel`.
    pub fn at(sys: impl Into<PathBuf>, proc: impl Into<PathBuf>, dev: impl Into<PathBuf>, kernel: Arc<dyn Kernel>) -> Self {
        Host { sys: sys.into(), proc: proc.into(), dev: dev.into(), kernel }
    }

    pub(super) fn pci_bus(&self) -> PathBuf {
        self.sys.join("bus/pci")
    }

    /// The directory of a function; every path to it goes through here.
    pub(super) fn function(&self, address: PciAddress) -> PathBuf {
        self.pci_bus().join("devices").join(address.to_string())
    }

    pub(super) fn driver(&self, name: &str) -> PathBuf {
        self.pci_bus().join("drivers").join(name)
    }

    /// The directory of a block device, a disk or a partition.
    pub(super) fn block(&self, name: &str) -> PathBuf {
        self.sys.join("class/block").join(name)
    }

    /// Text of `cpuinfo` in procfs; `None` if it cannot be read.
    pub fn cpuinfo(&self) -> Option<String> {
        text(&self.proc("cpuinfo")).ok()
    }

    pub(super) fn proc(&self, name: &str) -> PathBuf {
        self.proc.join(name)
    }

    pub(super) fn node(&self, name: &str) -> PathBuf {
        self.dev.join(name)
    }
}

/// The text of an attribute without the newline at its end.
pub(super) fn text(path: &Path) -> Result<String, PciError> {
    let bytes = fs::read(path).map_err(unreadable(path))?;
    Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
}

/// As [`text`], for an attribute that not every device has.
pub(super) fn text_if_there(path: &Path) -> Result<Option<String>, PciError> {
    if_there(text(path))
}

/// Where a symbolic link points: the last component.
pub(super) fn link_name(path: &Path) -> Result<Option<String>, PciError> {
    let target = if_there(fs::read_link(path).map_err(unreadable(path)))?;
    Ok(target.and_then(|target| Some(target.file_name()?.to_string_lossy().into_owned())))
}

/// The names in a directory, sorted; none if it is not there.
pub(super) fn names(directory: &Path) -> Result<Vec<String>, PciError> {
    let Some(listing) = if_there(fs::read_dir(directory).map_err(unreadable(directory)))? else { return Ok(Vec::new()) };
    let names: Result<Vec<_>, _> = listing.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect();
    let mut names = names.map_err(unreadable(directory))?;
    names.sort();
    Ok(names)
}

/// The first bytes of a file or block device, at most `length`.
pub(super) fn head(path: &Path, length: u64) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(File::open(path)?, length), &mut head)?;
    Ok(head)
}

/// What a malformed attribute is reported as.
pub(super) fn malformed(path: &Path, text: &str) -> PciError {
    PciError::Malformed { path: path.to_owned(), text: text.chars().take(64).collect() }
}

/// What a file that cannot be read is reported as.
pub(super) fn unreadable(path: &Path) -> impl FnOnce(io::Error) -> PciError {
    let path = path.to_owned();
    move |source| PciError::Read { path, source }
}

fn if_there<T>(outcome: Result<T, PciError>) -> Result<Option<T>, PciError> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(PciError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}
