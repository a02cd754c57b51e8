//! The filesystem as a transport sees it: one trait of operations.
//!
//! A transport (FUSE today) translates requests into these calls and nothing
//! else. Calls block; one that has to end a direct mapping first may take until
//! the revocation deadline, which [`Operations::may_wait`] tells in advance, so
//! that a transport never spends its serving threads on it.

use peerfs_p2p::Range;

use crate::error::Result;
use crate::types::*;

/// Parts of a file whose cached pages may hold what was there before a write(2).
pub struct Refetched {
    /// Where they are.
    pub ranges: Vec<Range>,
    /// To be held until they have been dropped.
    pub dropping: Box<dyn Send>,
}

/// The operations of a mounted volume. All may be called from any thread.
pub trait Operations: Send + Sync {
    /// A call on this inode may have to wait for a revocation. `None` asks about any inode.
    fn may_wait(&self, ino: Option<Ino>) -> bool;

    /// Changes wait until they are durable.
    fn is_synchronous(&self) -> bool;

    /// The file is open for writing through the page cache, so its pages may have been stored to.
    fn has_cached_writer(&self, ino: Ino) -> bool;

    /// Finds a name. Success counts one look-up of the inode, as does every call that returns an [`Attr`] for a new name.
    fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr>;
    /// The kernel forgets `count` look-ups.
    fn forget(&self, ino: Ino, count: u64);
    /// Attributes.
    fn getattr(&self, ino: Ino) -> Result<Attr>;
    /// Changes attributes. Permissions were checked by the kernel (default_permissions).
    fn setattr(&self, caller: Caller, ino: Ino, handle: Option<Handle>, set: SetAttr) -> Result<Attr>;
    /// Target of a symbolic link.
    fn readlink(&self, ino: Ino) -> Result<Vec<u8>>;
    /// Makes a regular or special file; `mode` has the type bits; the umask is the caller's.
    fn mknod(&self, caller: Caller, parent: Ino, name: &[u8], mode: u32, rdev: u32) -> Result<Attr>;
    /// Makes a directory.
    fn mkdir(&self, caller: Caller, parent: Ino, name: &[u8], mode: u32) -> Result<Attr>;
    /// Removes a name of a non-directory.
    fn unlink(&self, caller: Caller, parent: Ino, name: &[u8]) -> Result<()>;
    /// Removes an empty directory.
    fn rmdir(&self, caller: Caller, parent: Ino, name: &[u8]) -> Result<()>;
    /// Makes a symbolic link.
    fn symlink(&self, caller: Caller, parent: Ino, name: &[u8], target: &[u8]) -> Result<Attr>;
    /// Renames.
    fn rename(&self, caller: Caller, parent: Ino, name: &[u8], new_parent: Ino, new_name: &[u8], mode: RenameMode) -> Result<()>;
    /// Makes a hard link.
    fn link(&self, caller: Caller, ino: Ino, new_parent: Ino, new_name: &[u8]) -> Result<Attr>;

    /// Opens a regular file.
    fn open(&self, caller: Caller, ino: Ino, flags: OpenFlags) -> Result<Opened>;
    /// Makes and opens a regular file; opens it when it is there and `exclusive` is not set.
    fn create(
        &self,
        caller: Caller,
        parent: Ino,
        name: &[u8],
        mode: u32,
        exclusive: bool,
        flags: OpenFlags,
    ) -> Result<(Attr, Opened)>;
    /// Reads at most `length` bytes; fewer only at the end of the file. `into_cache`: the bytes will stay in the
    /// kernel's page cache (this, not the handle's mode, decides whether [`crate::coherence::Coherence::cached_read`] is told).
    fn read(&self, handle: Handle, offset: u64, length: u32, into_cache: bool) -> Result<ReadData>;
    /// Writes all of `data`.
    fn write(&self, caller: Caller, handle: Handle, offset: u64, data: &[u8], origin: WriteOrigin) -> Result<u32>;
    /// When a write(2) through the page cache arrives; to be held until [`Operations::write`] has returned.
    fn begin_buffered_write(&self, ino: Ino, range: Range) -> Option<Box<dyn Send>>;
    /// After a write(2) through the page cache, before it is answered: the pages of it that have to be dropped.
    fn refetched(&self, ino: Ino, written: Range) -> Option<Refetched>;
    /// Makes data and what is needed to find it durable.
    fn fsync(&self, handle: Handle, data_only: bool) -> Result<()>;
    /// The last descriptor of the handle is gone.
    fn release(&self, handle: Handle);
    /// Allocates, punches or zeroes.
    fn fallocate(&self, caller: Caller, handle: Handle, mode: FallocateMode, offset: u64, length: u64) -> Result<()>;
    /// SEEK_DATA and SEEK_HOLE, by what the server knows: stores to cached pages that were not written back are not in it.
    fn lseek(&self, handle: Handle, offset: u64, whence: SeekWhence) -> Result<u64>;

    /// Opens a directory.
    fn opendir(&self, ino: Ino, flags: OpenFlags) -> Result<Handle>;
    /// Lists a directory after `cookie` (0: from the start), with attributes if `plus`.
    fn readdir(&self, handle: Handle, cookie: u64, plus: bool, sink: DirSink<'_>) -> Result<()>;
    /// Makes a directory's changes durable.
    fn fsyncdir(&self, handle: Handle) -> Result<()>;
    /// Closes a directory.
    fn releasedir(&self, handle: Handle);

    /// Space.
    fn statfs(&self) -> Result<StatFs>;

    /// Sets an extended attribute.
    fn setxattr(&self, caller: Caller, ino: Ino, name: &[u8], value: &[u8], mode: XattrMode) -> Result<()>;
    /// Its value.
    fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>>;
    /// Names, each followed by NUL.
    fn listxattr(&self, caller: Caller, ino: Ino) -> Result<Vec<u8>>;
    /// Removes one.
    fn removexattr(&self, caller: Caller, ino: Ino, name: &[u8]) -> Result<()>;

    /// Makes everything durable (syncfs, unmount).
    fn sync(&self) -> Result<()>;
}
