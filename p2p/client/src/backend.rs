//! The seam to the kernel: everything the library asks of a mount. The real
//! implementation is in `kernel`; tests use a server in memory.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use peerfs_abi::devmem::DeviceMemory;
use peerfs_abi::ioctl::{Context, DeviceCopy, Event, Info, Map, ReadByServer, Reflink, Revoke, Unmap};
use peerfs_sys::Window;

use crate::PinKind;

/// What asking for a grant answers where the socket for grants cannot be reached: in a container that does not show it.
pub(crate) const NO_WAY: Errno = Errno::EHOSTUNREACH;

/// Calls on an open file.
pub(crate) trait FileCalls: Send + Sync {
    /// The decision table; nothing changes.
    fn query(&self, argument: &mut Map) -> io::Result<()>;
    /// Maps a range for a context.
    fn map(&self, argument: &mut Map) -> io::Result<()>;
    /// Revokes direct mappings.
    fn revoke(&self, argument: &mut Revoke) -> io::Result<()>;
    /// Names a source, or clones one.
    fn reflink(&self, argument: &mut Reflink) -> io::Result<()>;
    /// Has the importer inside the server read a range.
    fn read_by_server(&self, argument: &mut ReadByServer) -> io::Result<()>;
    /// Has an importer that the server drives copy a range.
    fn copy(&self, argument: &mut DeviceCopy) -> io::Result<()>;
    /// State of server and file.
    fn info(&self, argument: &mut Info) -> io::Result<()>;
    /// Size of the file, bytes.
    fn size(&self) -> io::Result<u64>;
    /// pread(2) past the page cache.
    fn read_at(&self, offset: u64, target: &mut [u8]) -> io::Result<usize>;
    /// pwrite(2) past the page cache.
    fn write_at(&self, offset: u64, source: &[u8]) -> io::Result<usize>;
}

/// Calls on a session.
pub(crate) trait SessionCalls: Send + Sync {
    /// Registers the importer and binds the session; called once, first. EPERM: the server may not look into this process.
    fn bind(&self, argument: &mut Context) -> io::Result<()>;
    /// Maps a grant into the process. [`NO_WAY`]: none can be had.
    fn window(&self, grant_id: u64, length: u64, writable: bool) -> io::Result<Window>;
    /// Device number (`st_dev`) of the mount.
    fn device(&self) -> io::Result<u64>;
    /// Takes a pin's descriptor, which is then its first holder.
    fn pinned(&self, _grant_id: u64, _kind: PinKind, _writable: bool) -> io::Result<OwnedFd> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Waits for events, [`SessionCalls::wake`] or the timeout.
    fn wait(&self, timeout: Option<Duration>) -> io::Result<()>;
    /// Ends the present or next wait. May be called from any thread.
    fn wake(&self);
    /// Adds the events that are pending; does not wait.
    fn events(&self, events: &mut Vec<Event>) -> io::Result<()>;
    /// Tells the server that these grants are no longer used.
    fn acknowledge(&self, grant_ids: &[u64]) -> io::Result<()>;
    /// Ends a mapping, or reports bytes moved through it.
    fn unmap(&self, argument: &mut Unmap) -> io::Result<()>;
    /// Allocates, grows, frees or looks at device memory.
    fn device_memory(&self, argument: &mut DeviceMemory) -> io::Result<()>;
    /// Opens the file of an allocation.
    fn device_memory_file(&self, id: u64, writable: bool) -> io::Result<Arc<dyn FileCalls>>;
}
