//! What clients and tools reach besides files: the virtual files of the control
//! directory, sessions, grants and ioctls. It knows no transport.

mod device_copy;
mod devmem;
mod faults;
mod ioctl;
mod metrics;
mod names;
mod reflink;
mod report;
mod server_read;
mod session;
#[cfg(test)]
mod tests;
mod trim;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use dashmap::DashMap;
use peerfs_abi::ioctl::{Event, transport};
use peerfs_blockdev::{Aperture, ApertureInfo, BlockDevice, IoCounters};
use peerfs_p2p::devmem::Pool;
use peerfs_p2p::{Client, Engine, GrantError, GrantObject, NvmeImporter, SessionId};
use zerocopy::IntoBytes;

pub use faults::Faults;
pub use ioctl::is_quick;
pub use names::{DIR_HANDLE, TTL, is_device_memory, is_reserved, is_virtual};
pub use report::MountFacts;
pub use trim::{FITRIM, TrimRange};

use self::names::Virtual;
use self::session::{VirtualHandle, Waker, Wakers};
use crate::bus::Bus;
use crate::core::Core;
use crate::cpu_cache::CpuCache;
use crate::error::{FsError, Result};
use crate::limits::Limit;
use crate::requests::RequestCounts;
use crate::types::{Attr, Caller, DirEntry, Handle, Ino, OpenFlags};

/// What opening a virtual file gives.
pub enum ControlOpened {
    /// Read, poll and ioctl go to [`Control`].
    Plain(Handle),
    /// mmap goes to this memory.
    Grant {
        /// For the release.
        handle: Handle,
        /// The granted object.
        memory: OwnedFd,
    },
}

/// The control side of one mount.
pub struct Control {
    core: Arc<Core>,
    engine: Arc<Engine>,
    cache: Arc<dyn CpuCache>,
    device: Arc<dyn BlockDevice>,
    aperture: Option<Arc<dyn Aperture>>,
    pool: Option<Arc<Pool>>,
    requests: Arc<RequestCounts>,
    storage: Arc<IoCounters>,
    importers: Vec<Arc<NvmeImporter>>,
    facts: MountFacts,
    limits: OnceLock<Vec<Limit>>,
    socket_path: Option<PathBuf>,
    wants_passthrough: bool,
    bus: Option<Arc<Bus>>,
    faults: Option<Faults>,
    passthrough: AtomicBool,
    handles: DashMap<Handle, VirtualHandle>,
    next_handle: AtomicU64,
}

/// Parts of a mount that [`Control`] reports on.
pub struct ControlParts {
    /// File operations.
    pub core: Arc<Core>,
    /// Mapping engine.
    pub engine: Arc<Engine>,
    /// The kernel's page cache above the mount.
    pub cache: Arc<dyn CpuCache>,
    /// Storage.
    pub device: Arc<dyn BlockDevice>,
    /// Its aperture.
    pub aperture: Option<Arc<dyn Aperture>>,
    /// Device memory, if the mount has some.
    pub pool: Option<Arc<Pool>>,
    /// Requests to the storage, below the aperture.
    pub storage: Arc<IoCounters>,
    /// Importers that the server drives.
    pub importers: Vec<Arc<NvmeImporter>>,
    /// What is fixed for the life of the mount.
    pub facts: MountFacts,
    /// Grants are to go through the mount itself.
    pub passthrough: bool,
    /// Socket for grants, when passthrough is not used, and for dma-bufs.
    pub socket_path: Option<PathBuf>,
    /// The machine's bus, if the topology is read from there.
    pub bus: Option<Arc<Bus>>,
    /// What makes the device fail, where that was asked for.
    pub faults: Option<Faults>,
}

impl Control {
    /// The control side of these parts.
    pub fn new(parts: ControlParts) -> Self {
        Control {
            core: parts.core,
            engine: parts.engine,
            cache: parts.cache,
            device: parts.device,
            aperture: parts.aperture,
            pool: parts.pool,
            requests: Arc::default(),
            storage: parts.storage,
            importers: parts.importers,
            facts: parts.facts,
            limits: OnceLock::new(),
            socket_path: parts.socket_path,
            wants_passthrough: parts.passthrough,
            bus: parts.bus,
            faults: parts.faults,
            passthrough: AtomicBool::new(false),
            handles: DashMap::new(),
            next_handle: AtomicU64::new(1),
        }
    }

    /// States what the mount cannot do, once it is known; until then nothing is.
    pub fn set_limits(&self, limits: Vec<Limit>) {
        self.limits.get_or_init(|| limits);
    }

    /// What the transport counts its requests with.
    pub fn requests(&self) -> &Arc<RequestCounts> {
        &self.requests
    }

    /// Grants are to go through the mount itself if the transport can.
    pub fn wants_passthrough(&self) -> bool {
        self.wants_passthrough
    }

    /// The transport tells whether it can.
    pub fn set_passthrough(&self, able: bool) {
        if self.wants_passthrough() && !able {
            tracing::error!("the kernel refuses FUSE passthrough, so nothing can be mapped: mount with -o grants=socket");
        }
        self.passthrough.store(able, Ordering::Relaxed);
    }

    /// How clients get grants.
    pub(crate) fn transport(&self) -> u32 {
        if self.passthrough.load(Ordering::Relaxed) { transport::PASSTHROUGH } else { transport::SOCKET }
    }

    /// Finds a virtual file. `None`: the name belongs to the volume.
    pub fn lookup(&self, caller: Caller, parent: Ino, name: &[u8]) -> Option<Result<Attr>> {
        let found = Virtual::look_up(parent, name);
        match found {
            Some(Virtual::Grant(id)) if self.engine.grant(id).is_none_or(|grant| grant.owner.uid != caller.uid) => {
                Some(Err(FsError::errno(libc::ENOENT)))
            }
            Some(file) => Some(self.getattr(file.ino())),
            None => is_virtual(parent).then_some(Err(FsError::errno(libc::ENOENT))),
        }
    }

    /// Attributes of a virtual file.
    pub fn getattr(&self, ino: Ino) -> Result<Attr> {
        let now = self.facts.started;
        let attributes = |mode, uid, size| Ok(names::attributes(ino, mode, uid, size, now));
        match Virtual::from_ino(ino) {
            Some(Virtual::Directory { .. }) => attributes(libc::S_IFDIR | 0o555, self.facts.owner_uid, 0),
            Some(Virtual::Session) => attributes(libc::S_IFREG | 0o666, self.facts.owner_uid, 0),
            Some(Virtual::Info | Virtual::Metrics) => attributes(libc::S_IFREG | 0o444, self.facts.owner_uid, 0),
            Some(Virtual::Mappings) => attributes(libc::S_IFREG | 0o400, self.facts.owner_uid, 0),
            Some(Virtual::Topology) => attributes(libc::S_IFREG | 0o444, self.facts.owner_uid, 0),
            Some(Virtual::Faults) if self.faults.is_some() => attributes(libc::S_IFREG | 0o600, self.facts.owner_uid, 0),
            Some(Virtual::Faults) => Err(FsError::errno(libc::ENOENT)),
            Some(Virtual::DeviceMemoryUse) => attributes(libc::S_IFREG | 0o444, self.facts.owner_uid, 0),
            Some(Virtual::DeviceMemory(id)) => self.device_memory_attributes(ino, id),
            Some(Virtual::Grant(id)) => match self.engine.grant(id) {
                Some(grant) => {
                    let mode = if grant.writable { 0o600 } else { 0o400 };
                    attributes(libc::S_IFREG | mode, grant.owner.uid, grant.length)
                }
                None => Err(FsError::errno(libc::ESTALE)),
            },
            None => Err(FsError::errno(libc::ENOENT)),
        }
    }

    /// What listing a control directory shows.
    pub fn entries(&self, ino: Ino) -> Vec<DirEntry<'static>> {
        let mut entries = names::entries(ino);
        entries.retain(|entry| entry.ino != Virtual::Faults.ino() || self.faults.is_some());
        entries.retain(|entry| entry.ino != Virtual::DeviceMemoryUse.ino() || self.pool.is_some());
        entries
    }

    /// A truncating open is a truncate: it changes nothing, and is allowed where a write is.
    pub fn truncate(&self, ino: Ino) -> Result<Attr> {
        match Virtual::from_ino(ino) {
            Some(Virtual::Faults) => self.getattr(ino),
            _ => Err(FsError::errno(libc::EPERM)),
        }
    }

    /// Carries out commands that were written to a virtual file.
    pub fn write(&self, handle: Handle, data: &[u8]) -> Result<u32> {
        match (self.handles.get(&handle).as_deref(), &self.faults) {
            (Some(VirtualHandle::Faults(_)), Some(faults)) => {
                faults.run(data)?;
                Ok(data.len() as u32)
            }
            _ => Err(FsError::errno(libc::EPERM)),
        }
    }

    /// Opens a virtual file.
    pub fn open(&self, caller: Caller, ino: Ino, flags: OpenFlags) -> Result<ControlOpened> {
        match Virtual::from_ino(ino) {
            Some(Virtual::Session) => self.open_session(caller),
            Some(Virtual::Info) => self.open_text(flags, self.info_json()?),
            Some(Virtual::Metrics) => self.open_text(flags, self.metrics_text()?),
            Some(Virtual::Mappings) => {
                self.owner_only(caller)?;
                self.open_text(flags, self.mappings_json()?)
            }
            Some(Virtual::Topology) => self.open_text(flags, self.topology_json()?),
            Some(Virtual::Faults) => {
                self.owner_only(caller)?;
                let faults = self.faults.as_ref().ok_or(FsError::errno(libc::ENOENT))?;
                Ok(ControlOpened::Plain(self.add(VirtualHandle::Faults(Arc::new(faults.text())))))
            }
            Some(Virtual::DeviceMemoryUse) => self.open_text(flags, self.device_memory_json(caller)?),
            Some(Virtual::DeviceMemory(id)) => self.open_device_memory(id, flags),
            Some(Virtual::Grant(id)) => {
                let tgid = peerfs_sys::thread_group(caller.tid).map_err(|_| FsError::errno(libc::ESRCH))?;
                let client = Client { tgid, uid: caller.uid };
                if self.engine.grant(id).is_some_and(|grant| grant.object == GrantObject::PinnedDmabuf) {
                    // The kernel passes no mmap through to a dma-buf: it is handed over on the socket.
                    return Err(FsError::errno(libc::EOPNOTSUPP));
                }
                let memory = self.engine.take_grant(id, client, flags.write).map_err(|error| grant_error(&error))?;
                let handle = self.add(VirtualHandle::Grant);
                Ok(ControlOpened::Grant { handle, memory })
            }
            Some(Virtual::Directory { .. }) | None => Err(FsError::errno(libc::EISDIR)),
        }
    }

    /// Reads an open virtual file: text, or the events of a session.
    pub fn read(&self, handle: Handle, offset: u64, size: u32) -> Result<Vec<u8>> {
        let session = match self.handles.get(&handle).as_deref() {
            Some(VirtualHandle::Text(text) | VirtualHandle::Faults(text)) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX).min(text.len());
                let end = start.saturating_add(size as usize).min(text.len());
                return Ok(text[start..end].to_vec());
            }
            Some(VirtualHandle::Session { id, .. }) => *id,
            Some(VirtualHandle::Grant | VirtualHandle::DeviceMemory { .. }) => return Err(FsError::errno(libc::EOPNOTSUPP)),
            None => return Err(FsError::errno(libc::EBADF)),
        };
        let room = size as usize / size_of::<Event>();
        if room == 0 {
            return Err(FsError::errno(libc::EINVAL));
        }
        let events = self.engine.events(session, room);
        if events.is_empty() { Err(FsError::errno(libc::EAGAIN)) } else { Ok(events.as_bytes().to_vec()) }
    }

    /// Calls `waker` once, when the session has an event.
    pub fn on_ready(&self, handle: Handle, waker: Waker) {
        if let Some(VirtualHandle::Session { wakers, .. }) = self.handles.get(&handle).as_deref() {
            wakers.add(waker);
        }
    }

    /// Reading would give something.
    pub fn is_ready(&self, handle: Handle) -> bool {
        match self.handles.get(&handle).as_deref() {
            Some(VirtualHandle::Session { id, .. }) => self.engine.has_events(*id),
            _ => true,
        }
    }

    /// The last descriptor of a virtual file is gone. A session's end revokes all it holds, which takes a while.
    pub fn release(&self, handle: Handle) {
        if let Some((_, VirtualHandle::Session { id, .. })) = self.handles.remove(&handle) {
            self.engine.close_session(id);
            if let Some(pool) = &self.pool {
                pool.close_session(id);
            }
        }
    }

    /// Carries an ioctl out.
    pub fn ioctl(
        &self,
        caller: Caller,
        ino: Ino,
        handle: Handle,
        command: u32,
        input: &[u8],
        out_size: usize,
    ) -> Result<Vec<u8>> {
        ioctl::Call { control: self, caller, ino, handle }.run(command, input, out_size)
    }

    fn add(&self, file: VirtualHandle) -> Handle {
        let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
        self.handles.insert(handle, file);
        handle
    }

    fn open_session(&self, caller: Caller) -> Result<ControlOpened> {
        let wakers = Arc::new(Wakers::default());
        let wake = Arc::clone(&wakers);
        let opened = self.engine.open_session(caller.uid, Arc::new(move || wake.wake()));
        let id = opened.map_err(|error| ioctl::session_error(&error))?;
        Ok(ControlOpened::Plain(self.add(VirtualHandle::Session { id, wakers })))
    }

    fn open_text(&self, flags: OpenFlags, text: Vec<u8>) -> Result<ControlOpened> {
        if flags.write {
            return Err(FsError::errno(libc::EACCES));
        }
        Ok(ControlOpened::Plain(self.add(VirtualHandle::Text(Arc::new(text)))))
    }

    fn session(&self, ino: Ino, handle: Handle) -> Option<SessionId> {
        if Virtual::from_ino(ino) != Some(Virtual::Session) {
            return None;
        }
        match self.handles.get(&handle).as_deref() {
            Some(VirtualHandle::Session { id, .. }) => Some(*id),
            _ => None,
        }
    }

    fn owner_only(&self, caller: Caller) -> Result<()> {
        let allowed = caller.uid == self.facts.owner_uid || caller.uid == 0;
        if allowed { Ok(()) } else { Err(FsError::errno(libc::EPERM)) }
    }

    fn aperture_info(&self) -> Option<ApertureInfo> {
        self.aperture.as_ref().map(|aperture| aperture.info())
    }

    fn deadline_ms(&self) -> u32 {
        self.facts.deadline_ms
    }

    fn socket_field(&self) -> [u8; 108] {
        let path = self.socket_path.as_deref().and_then(|path| path.to_str());
        path.and_then(peerfs_abi::ioctl::pack_name).unwrap_or([0; 108])
    }

    /// Capacity and free space, bytes.
    fn space(&self) -> Result<(u64, u64)> {
        let space = crate::ops::Operations::statfs(&*self.core)?;
        Ok((space.blocks * peerfs_blockdev::BLOCK_BYTES, space.free * peerfs_blockdev::BLOCK_BYTES))
    }
}

fn grant_error(error: &GrantError) -> FsError {
    FsError::errno(error.errno())
}
