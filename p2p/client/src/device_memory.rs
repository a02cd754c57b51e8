//! Memory of a device, lent by the server as main memory is by the kernel.

use std::fmt;
use std::ops::RangeBounds;

use peerfs_abi::ABI_VERSION;
use peerfs_abi::devmem::{self, device_memory_call as call, device_memory_name};

use crate::{Error, File, MapFlags, Mapping, Session};

/// Device memory that this session allocated. It is freed when this is dropped, or with the session; everybody's
/// mappings of it are revoked first.
pub struct DeviceMemory {
    session: Session,
    file: File,
    id: u64,
}

impl Session {
    /// Allocates `bytes` of zeroed device memory, rounded up to 4096; only this user can open it.
    ///
    /// # Errors
    /// ENODEV when the mount has none, ENOMEM when it is used up, EDQUOT at a limit, EFBIG for more than the device has.
    pub fn allocate_device_memory(&self, bytes: u64) -> Result<DeviceMemory, Error> {
        self.allocate_device_memory_with_mode(bytes, 0o600)
    }

    /// As [`Session::allocate_device_memory`]; `mode` has the permission bits with which others may open it.
    ///
    /// # Errors
    /// As [`Session::allocate_device_memory`].
    pub fn allocate_device_memory_with_mode(&self, bytes: u64, mode: u32) -> Result<DeviceMemory, Error> {
        let allocated = self.device_memory_call("allocate device memory on", call::ALLOCATE, 0, bytes, mode)?;
        match self.open_device_memory(allocated.id, true) {
            Ok(file) => Ok(DeviceMemory { session: self.clone(), file, id: allocated.id }),
            Err(error) => {
                // Nobody else knows of it; should this fail too, it ends with the session.
                let _ = self.device_memory_call("free device memory of", call::FREE, allocated.id, 0, 0);
                Err(error)
            }
        }
    }

    /// Opens device memory that any session allocated, if its permissions allow. It is mapped, read and written as a file.
    ///
    /// # Errors
    /// What open(2) answers; ENOENT when it was freed.
    pub fn open_device_memory(&self, id: u64, writable: bool) -> Result<File, Error> {
        let core = &self.owner.core;
        core.check()?;
        let name = device_memory_name(id);
        let calls = core.calls.device_memory_file(id, writable).map_err(|source| Error::system("open", &name, source))?;
        Ok(File::from_calls(calls, &name))
    }

    fn device_memory_call(
        &self,
        operation: &'static str,
        call: u32,
        id: u64,
        bytes: u64,
        mode: u32,
    ) -> Result<devmem::DeviceMemory, Error> {
        let core = &self.owner.core;
        core.check()?;
        let mut argument = devmem::DeviceMemory { abi_version: ABI_VERSION, call, id, bytes, mode, migrated: 0 };
        let answer = core.calls.device_memory(&mut argument);
        answer.map_err(|source| Error::command(operation, &core.name, source))?;
        Ok(argument)
    }
}

impl DeviceMemory {
    /// Its number, by which another session opens it.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The file behind it, for everything that takes one.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Size now, bytes.
    ///
    /// # Errors
    /// [`Error::ServerGone`], or what the call answers.
    pub fn bytes(&self) -> Result<u64, Error> {
        Ok(self.look()?.bytes)
    }

    /// It is in main memory at present, because the device had no room. It is served as before, but by fallback.
    ///
    /// # Errors
    /// As [`DeviceMemory::bytes`].
    pub fn is_migrated(&self) -> Result<bool, Error> {
        Ok(self.look()?.migrated == 1)
    }

    /// Maps a range for this session's importer, as [`Session::map`] does a file's.
    ///
    /// # Errors
    /// As [`Session::map`].
    pub fn map(&self, range: impl RangeBounds<u64>, flags: MapFlags) -> Result<Mapping, Error> {
        self.session.map(&self.file, range, flags)
    }

    /// Reads by the CPU; fewer bytes than asked for at the end only.
    ///
    /// # Errors
    /// As [`File::read_at`].
    pub fn read_at(&self, offset: u64, target: &mut [u8]) -> Result<usize, Error> {
        self.file.read_at(offset, target)
    }

    /// Writes by the CPU. Parts of a block (4096 bytes) end mappings of it that may write.
    ///
    /// # Errors
    /// As [`File::write_at`]; ENOSPC beyond the end.
    pub fn write_at(&self, offset: u64, source: &[u8]) -> Result<(), Error> {
        self.file.write_at(offset, source)
    }

    /// Grows it to `bytes`; the new part is zero. Mappings stay, where it need not move.
    ///
    /// # Errors
    /// As [`Session::allocate_device_memory`]; EINVAL for fewer bytes than it has.
    pub fn grow(&self, bytes: u64) -> Result<(), Error> {
        self.session.device_memory_call("grow device memory of", call::GROW, self.id, bytes, 0).map(drop)
    }

    /// Frees it now, and tells whether that worked.
    ///
    /// # Errors
    /// [`Error::ServerGone`], or what the call answers.
    pub fn free(mut self) -> Result<(), Error> {
        let freed = self.release();
        self.id = 0;
        freed
    }

    fn release(&self) -> Result<(), Error> {
        self.session.device_memory_call("free device memory of", call::FREE, self.id, 0, 0).map(drop)
    }

    fn look(&self) -> Result<devmem::DeviceMemory, Error> {
        self.session.device_memory_call("look at device memory of", call::LOOK, self.id, 0, 0)
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        if self.id != 0 {
            // A server that has gone, or a fork child: nothing of it is ours any more.
            let _ = self.release();
        }
    }
}

impl fmt::Debug for DeviceMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceMemory({})", self.id)
    }
}
