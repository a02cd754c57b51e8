//! Device memory on a mount: the ioctl of sessions, the files through which allocations are opened, and the report.

use std::sync::Arc;

use peerfs_abi::ABI_VERSION;
use peerfs_abi::devmem::{DeviceMemory, device_memory_call};
use peerfs_p2p::devmem::{AllocationView, Owner, Pool, PoolError};
use peerfs_p2p::{Client, SessionId};
use serde_json::{Value, json};

use super::session::VirtualHandle;
use super::{Control, ControlOpened, names};
use crate::error::{FsError, Result};
use crate::types::{Attr, Caller, Handle, Ino, OpenFlags};

/// Bits of the mode that a file of device memory can have; its owner always may read and write.
const MODE_BITS: u32 = 0o666;
const OWNER_BITS: u32 = 0o600;

impl Control {
    /// Carries a session's call out.
    pub(super) fn device_memory(
        &self,
        session: SessionId,
        client: Client,
        caller: Caller,
        mut call: DeviceMemory,
    ) -> Result<DeviceMemory> {
        if call.abi_version != ABI_VERSION {
            return Err(FsError::errno(libc::EPROTO));
        }
        let pool = self.pool()?;
        let view = match call.call {
            device_memory_call::ALLOCATE if call.id == 0 && call.mode & !MODE_BITS == 0 => {
                let owner = Owner { session, client, gid: caller.gid, mode: call.mode | OWNER_BITS };
                pool.allocate(owner, call.bytes)
            }
            device_memory_call::GROW => pool.grow(session, call.id, call.bytes),
            device_memory_call::LOOK => pool.view(call.id),
            device_memory_call::FREE => {
                pool.free(session, call.id).map_err(|error| failure(&error))?;
                (call.bytes, call.migrated) = (0, 0);
                return Ok(call);
            }
            _ => return Err(FsError::errno(libc::EINVAL)),
        };
        let view = view.map_err(|error| failure(&error))?;
        (call.id, call.bytes, call.migrated) = (view.id, view.bytes, u32::from(view.migrated));
        Ok(call)
    }

    /// Attributes of the file of an allocation.
    pub(super) fn device_memory_attributes(&self, ino: Ino, id: u64) -> Result<Attr> {
        let pool = self.pool.as_ref().ok_or(FsError::errno(libc::ENOENT))?;
        let AllocationView { owner, bytes, .. } = pool.view(id).map_err(|error| failure(&error))?;
        let mode = libc::S_IFREG | owner.mode;
        let mut attributes = names::attributes(ino, mode, owner.client.uid, bytes, self.facts.started);
        attributes.gid = owner.gid;
        attributes.blocks = bytes / 512;
        Ok(attributes)
    }

    /// The kernel has checked the permissions.
    pub(super) fn open_device_memory(&self, id: u64, flags: OpenFlags) -> Result<ControlOpened> {
        self.pool()?.view(id).map_err(|error| failure(&error))?;
        Ok(ControlOpened::Plain(self.add(VirtualHandle::DeviceMemory { id, read: flags.read, write: flags.write })))
    }

    /// What an open file of device memory is, if it is one.
    pub(super) fn opened_device_memory(&self, handle: Handle) -> Option<(u64, bool, bool)> {
        match self.handles.get(&handle).as_deref() {
            Some(VirtualHandle::DeviceMemory { id, read, write }) => Some((*id, *read, *write)),
            _ => None,
        }
    }

    /// Reads device memory. May wait while it moves. `into_cache`: the kernel wants to keep the pages, which nobody could
    /// keep coherent.
    pub fn read_device_memory(&self, handle: Handle, offset: u64, size: u32, into_cache: bool) -> Result<Vec<u8>> {
        let (id, read, _) = self.opened_device_memory(handle).ok_or(FsError::errno(libc::EBADF))?;
        if !read || into_cache {
            return Err(FsError::errno(if read { libc::ENODEV } else { libc::EBADF }));
        }
        self.pool()?.read(id, offset, size.into()).map_err(|error| failure(&error))
    }

    /// Writes device memory; answers how many bytes fit. As [`Control::read_device_memory`].
    pub fn write_device_memory(&self, handle: Handle, offset: u64, data: &[u8], from_cache: bool) -> Result<u32> {
        let (id, _, write) = self.opened_device_memory(handle).ok_or(FsError::errno(libc::EBADF))?;
        if !write || from_cache {
            return Err(FsError::errno(if write { libc::ENODEV } else { libc::EBADF }));
        }
        let written = self.pool()?.write(id, offset, data).map_err(|error| failure(&error))?;
        Ok(written as u32)
    }

    /// `devmem.json`, for this reader: an ordinary user sees what is its own.
    pub(super) fn device_memory_json(&self, caller: Caller) -> Result<Vec<u8>> {
        let mut record = self.pool()?.record();
        if self.owner_only(caller).is_err() {
            record.users.retain(|usage| usage.uid == caller.uid);
            record.processes.retain(|usage| usage.uid == caller.uid);
            record.allocations.retain(|allocation| allocation.uid == caller.uid);
        }
        super::report::render(&record)
    }

    /// The part of `info.json`; null where the mount has no device memory.
    pub(super) fn device_memory_summary(&self) -> Value {
        self.pool.as_ref().map_or(Value::Null, |pool| {
            let record = pool.record();
            json!({
                "device_bytes": record.device_bytes,
                "free_bytes": record.free_bytes,
                "main_bytes_max": record.main_bytes_max,
                "main_bytes_used": record.main_bytes_used,
                "allocations": record.allocations.len(),
                "moved_out": record.moved_out,
                "moved_in": record.moved_in,
            })
        })
    }

    fn pool(&self) -> Result<&Arc<Pool>> {
        self.pool.as_ref().ok_or(FsError::errno(libc::ENODEV))
    }
}

fn failure(error: &PoolError) -> FsError {
    match error {
        PoolError::Device(_) | PoolError::Main(_) => FsError::with_context(error.errno(), error.to_string()),
        _ => FsError::errno(error.errno()),
    }
}
