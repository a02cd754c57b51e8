//! `mem:` - blocks in a memory file of this process, through the same engine as an image.

use std::sync::Arc;

use peerfs_sys::{Engine, private_memfd};

use crate::ringfile::{RingFile, raw};
use crate::{BLOCK_BYTES, BlockDevice, DeviceError, DeviceInfo, EventSink, Io, IoBuf, Ticket};

/// A volatile device in memory.
#[derive(Debug)]
pub struct MemDevice {
    file: RingFile,
}

impl MemDevice {
    /// A device of `size_bytes` zeros, rounded up to blocks, on an engine of its own.
    ///
    /// # Errors
    /// [`DeviceError::Unusable`] when the kernel refuses the engine or the memory.
    pub fn new(size_bytes: u64) -> Result<Self, DeviceError> {
        let name = format!("mem:{size_bytes}");
        let unusable = |what: &str, errno: i32| DeviceError::Unusable {
            device: name.clone(),
            reason: format!("cannot make {what}: {}", std::io::Error::from_raw_os_error(errno)),
        };
        let size_bytes = size_bytes
            .max(1)
            .checked_next_multiple_of(BLOCK_BYTES)
            .filter(|size| i64::try_from(*size).is_ok())
            .ok_or_else(|| unusable("a memory file", libc::EFBIG))?;
        let engine = Engine::new().map_err(|err| unusable("an io_uring", raw(&err)))?;
        let file = private_memfd("peerfs-mem", size_bytes).map_err(|err| unusable("a memory file", raw(&err)))?;
        let info = DeviceInfo { name, backend: "mem", size_bytes, direct_io: true };
        Ok(MemDevice { file: RingFile { engine, file: Arc::new(file), info: Arc::new(info), read_only: false, durable: false } })
    }

    /// The engine that moves its blocks; a [`crate::Cmb`] over it should share it.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.file.engine
    }
}

crate::ringfile::delegate!(MemDevice);
