//! What operations take and give. Nothing here knows a transport.

use std::ops::Deref;

use peerfs_blockdev::IoBuf;

/// Inode number; never reused on a volume.
pub type Ino = u64;

/// The root directory.
pub const ROOT_INO: Ino = 1;

/// An open file or directory.
pub type Handle = u64;

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
    /// Thread id, 0 when the kernel asks on its own behalf (write-back).
    pub tid: u32,
    /// Permission bits that what it makes does not get, unless the directory has a default access control list.
    pub umask: u32,
}

/// Seconds and nanoseconds since 1970; seconds may be negative.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp {
    /// Seconds.
    pub seconds: i64,
    /// Nanoseconds, below 1,000,000,000.
    pub nanoseconds: u32,
}

/// Attributes of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attr {
    /// Inode number.
    pub ino: Ino,
    /// Generation, for file handles.
    pub generation: u64,
    /// Type and permission bits (`st_mode`).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Hard links.
    pub nlink: u32,
    /// Size in bytes.
    pub size: u64,
    /// Allocated space in 512-byte units (`st_blocks`).
    pub blocks: u64,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of content.
    pub mtime: Timestamp,
    /// Last change of attributes.
    pub ctime: Timestamp,
    /// Creation.
    pub crtime: Timestamp,
    /// Device number of special files.
    pub rdev: u32,
}

/// A time to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetTime {
    /// The server's clock.
    Now,
    /// A given time.
    At(Timestamp),
}

/// Attributes to change; `None` leaves one as it is.
#[derive(Debug, Clone, Copy, Default)]
pub struct SetAttr {
    /// Permission bits (07777).
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size in bytes (truncate).
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<SetTime>,
    /// Last change of content.
    pub mtime: Option<SetTime>,
    /// Last change of attributes.
    pub ctime: Option<Timestamp>,
}

/// How an open file meets the kernel's page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandleMode {
    /// Reads and writes may go through the page cache; it can be mmapped.
    Cached,
    /// Every read and write reaches the server, and shared mmap is refused.
    Direct,
}

/// Flags of an open, transport-neutral.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct OpenFlags {
    /// Reading allowed.
    pub read: bool,
    /// Writing allowed.
    pub write: bool,
    /// Truncate on open.
    pub truncate: bool,
    /// Append.
    pub append: bool,
    /// The mapping client's own handle: [`HandleMode::Direct`].
    pub direct: bool,
    /// Reading leaves the access time alone.
    pub no_atime: bool,
}

/// An opened file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened {
    /// For later calls.
    pub handle: Handle,
    /// How the transport is to open it.
    pub mode: HandleMode,
    /// The kernel may keep the pages it has cached.
    pub keep_cache: bool,
}

/// A directory entry as readdir gives it.
#[derive(Debug, Clone, Copy)]
pub struct DirEntry<'a> {
    /// Inode number.
    pub ino: Ino,
    /// Type bits (`S_IFMT` part of a mode).
    pub kind: u32,
    /// Where to continue after this entry; stable while entries come and go.
    pub cookie: u64,
    /// Name.
    pub name: &'a [u8],
    /// Attributes, for readdirplus. Delivering it counts as a look-up, except for `.` and `..`.
    pub attr: Option<&'a Attr>,
}

/// Where readdir puts entries; answers `false` when the entry did not fit.
pub type DirSink<'a> = &'a mut dyn FnMut(&DirEntry<'_>) -> bool;

/// Space of the volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatFs {
    /// Blocks of 4096 bytes for data.
    pub blocks: u64,
    /// Free ones.
    pub free: u64,
    /// Free ones that an ordinary user may take.
    pub available: u64,
    /// Inodes in use plus those that could be made.
    pub inodes: u64,
    /// Inodes that could be made.
    pub inodes_free: u64,
}

/// Bytes read: a part of a device buffer, without another copy.
#[derive(Debug)]
pub struct ReadData {
    buf: Option<IoBuf>,
    start: usize,
    length: usize,
}

impl ReadData {
    /// `length` bytes of `buf` from `start`.
    pub fn new(buf: IoBuf, start: usize, length: usize) -> Self {
        assert!(start + length <= buf.len(), "the part lies inside the buffer");
        ReadData { buf: Some(buf), start, length }
    }

    /// End of file.
    pub fn empty() -> Self {
        ReadData { buf: None, start: 0, length: 0 }
    }
}

impl Deref for ReadData {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match &self.buf {
            Some(buf) => &buf[self.start..self.start + self.length],
            None => &[],
        }
    }
}

/// Where a write comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WriteOrigin {
    /// The bytes are also in the kernel's page cache: a buffered write or write-back (this, not the handle's
    /// mode, decides whether [`crate::coherence::Coherence::cached_write`] is told).
    pub through_cache: bool,
    /// Pages that the kernel writes back from a shared mapping; the caller's identity means nothing.
    pub from_page_cache: bool,
    /// The kernel asks to clear set-user-id and set-group-id bits.
    pub kill_suid: bool,
    /// The file is open with O_SYNC or O_DSYNC. Counts on a [`HandleMode::Direct`] handle only: for the
    /// others the kernel sends an fsync of its own.
    pub synchronous: bool,
}

impl WriteOrigin {
    /// A write(2) through the page cache.
    pub fn is_buffered(self) -> bool {
        self.through_cache && !self.from_page_cache
    }
}

/// Seek for data or for a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeekWhence {
    /// SEEK_DATA.
    Data,
    /// SEEK_HOLE.
    Hole,
}

/// The fallocate modes there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FallocateMode {
    /// Allocate; grow the file unless `keep_size`.
    Allocate {
        /// FALLOC_FL_KEEP_SIZE.
        keep_size: bool,
    },
    /// FALLOC_FL_PUNCH_HOLE.
    PunchHole,
    /// FALLOC_FL_ZERO_RANGE.
    ZeroRange {
        /// FALLOC_FL_KEEP_SIZE.
        keep_size: bool,
    },
}

/// Flags of rename.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RenameMode {
    /// Replace what is there.
    Replace,
    /// RENAME_NOREPLACE.
    NoReplace,
    /// RENAME_EXCHANGE.
    Exchange,
    /// RENAME_WHITEOUT: replace what is there, and leave a whiteout (a character device 0/0) under the old name.
    Whiteout,
    /// RENAME_WHITEOUT and RENAME_NOREPLACE.
    WhiteoutNoReplace,
}

impl RenameMode {
    /// The new name has to be free.
    pub fn needs_free_name(self) -> bool {
        matches!(self, RenameMode::NoReplace | RenameMode::WhiteoutNoReplace)
    }

    /// The old name stays, as a whiteout.
    pub fn leaves_whiteout(self) -> bool {
        matches!(self, RenameMode::Whiteout | RenameMode::WhiteoutNoReplace)
    }
}

/// Flags of setxattr.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XattrMode {
    /// Create or replace.
    Any,
    /// XATTR_CREATE.
    Create,
    /// XATTR_REPLACE.
    Replace,
}
