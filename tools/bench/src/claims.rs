//! Keeps jobs from writing to block devices that are mounted or in use.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};

use nix::errno::Errno;
use nix::fcntl::OFlag;

use crate::{Error, Job};

/// Devices that are ours for as long as this lives, by number. The kernel gives each only once, and clones may share one.
#[derive(Debug, Default)]
pub struct Claims(BTreeMap<u64, File>);

impl Claims {
    /// Claims what a clone writes, if that is a block device.
    ///
    /// # Errors
    /// [`Error::InUse`]; [`Error::System`].
    pub fn add(&mut self, job: &Job, clone: u32) -> Result<(), Error> {
        let path = job.file(clone);
        let device = fs::metadata(&path).ok().filter(|metadata| metadata.file_type().is_block_device());
        let Some(device) = device.filter(|device| job.settings.access.writes && !self.0.contains_key(&device.rdev())) else {
            return Ok(());
        };
        let opened = OpenOptions::new().read(true).custom_flags(OFlag::O_EXCL.bits()).open(&path);
        let claim = opened.map_err(|source| match source.raw_os_error() {
            Some(errno) if errno == Errno::EBUSY as i32 => Error::InUse { device: path.display().to_string() },
            _ => Error::system("open", path.display(), source),
        })?;
        self.0.insert(device.rdev(), claim);
        Ok(())
    }
}
