//! Who uses a controller: one process, and those it shares its lock with.

use std::fs::{File, TryLockError};
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use super::{Host, PciAddress, PciError};
use crate::lock_wait;

/// An exclusive flock(2) on the device's `config` in sysfs, which is there whatever driver has the device. It lasts until
/// this and every descriptor from [`DeviceLock::share`] is closed. Processes that see another mount of sysfs (a container
/// with its own) are not kept out by it.
#[derive(Debug)]
pub struct DeviceLock {
    file: File,
}

impl DeviceLock {
    /// Takes the lock, waiting for another process at most `wait`.
    ///
    /// # Errors
    /// [`PciError::NoSuchDevice`], [`PciError::Locked`], and [`PciError::Read`] if the file cannot be opened or locked.
    pub fn acquire(host: &Host, address: PciAddress, wait: Duration) -> Result<Self, PciError> {
        let path = host.function(address).join("config");
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => PciError::NoSuchDevice { address },
            _ => PciError::Read { path: path.clone(), source },
        };
        let file = File::open(&path).map_err(failed)?;
        let taken = lock_wait::until(Instant::now() + wait, || match file.try_lock() {
            Ok(()) => Ok(Some(())),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(failed(error)),
        })?;
        taken.map(|()| DeviceLock { file }).ok_or(PciError::Locked { address })
    }

    /// Another descriptor that keeps the lock, for another process.
    ///
    /// # Errors
    /// What dup(2) answers.
    pub fn share(&self) -> io::Result<OwnedFd> {
        Ok(self.file.try_clone()?.into())
    }
}
