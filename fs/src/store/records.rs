//! Values of the metadata database. Little endian, fixed layouts with their
//! sizes asserted; decoding accepts nothing that this code would not write.

use zerocopy::little_endian::{I64, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::key::{NAME_BYTES, RecordError};

/// Largest value of an extended attribute in bytes (the kernel's XATTR_SIZE_MAX).
pub const XATTR_BYTES: usize = 65536;
/// Longest target of a symbolic link in bytes.
pub const SYMLINK_BYTES: usize = 4095;
/// Inode number of the root directory.
pub const ROOT_INO: u64 = 1;

/// Numbers of the counter records.
pub mod counter {
    /// The next inode number to hand out.
    pub const NEXT_INO: u32 = 1;
    /// The next inode generation to hand out.
    pub const NEXT_GENERATION: u32 = 2;
}

/// A value with a fixed encoding.
pub trait Record: Sized {
    /// Name of the type, for messages.
    const WHAT: &'static str;
    /// The bytes in the database.
    fn encode(&self) -> Vec<u8>;
    /// Reads the value back.
    fn decode(bytes: &[u8]) -> Result<Self, RecordError>;

    /// The error for a malformed value of this type.
    fn malformed(reason: &'static str) -> RecordError {
        RecordError::BadValue { what: Self::WHAT, reason }
    }
}

/// A point in time, also before 1970 and after 2038.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Timestamp {
    /// Seconds since 1970, may be negative.
    pub sec: i64,
    /// Nanoseconds after `sec`, below 1,000,000,000.
    pub nsec: u32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawTime {
    sec: I64,
    nsec: U32,
}

impl RawTime {
    fn new(time: Timestamp) -> Self {
        RawTime { sec: time.sec.into(), nsec: time.nsec.into() }
    }

    fn decode(self) -> Result<Timestamp, RecordError> {
        if self.nsec.get() >= 1_000_000_000 {
            return Err(Inode::malformed("nanoseconds out of range"));
        }
        Ok(Timestamp { sec: self.sec.get(), nsec: self.nsec.get() })
    }
}

/// Type of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FileKind {
    /// Regular file.
    Regular = 1,
    /// Directory.
    Directory = 2,
    /// Symbolic link.
    Symlink = 3,
    /// Block device node.
    BlockDevice = 4,
    /// Character device node.
    CharDevice = 5,
    /// Named pipe.
    Fifo = 6,
    /// Socket.
    Socket = 7,
}

impl FileKind {
    const ALL: [(FileKind, u32); 7] = [
        (FileKind::Regular, libc::S_IFREG),
        (FileKind::Directory, libc::S_IFDIR),
        (FileKind::Symlink, libc::S_IFLNK),
        (FileKind::BlockDevice, libc::S_IFBLK),
        (FileKind::CharDevice, libc::S_IFCHR),
        (FileKind::Fifo, libc::S_IFIFO),
        (FileKind::Socket, libc::S_IFSOCK),
    ];

    /// The type in a mode's S_IFMT bits.
    pub fn from_mode(mode: u32) -> Option<FileKind> {
        Self::ALL.iter().find(|(_, bits)| mode & libc::S_IFMT == *bits).map(|(kind, _)| *kind)
    }

    /// The S_IFMT bits.
    pub fn mode_bits(self) -> u32 {
        Self::ALL.iter().find(|(kind, _)| *kind == self).map_or(0, |(_, bits)| *bits)
    }

    fn from_byte(byte: u8) -> Option<FileKind> {
        Self::ALL.iter().find(|(kind, _)| *kind as u8 == byte).map(|(kind, _)| *kind)
    }
}

/// An inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inode {
    /// Its number, as in the key.
    pub ino: u64,
    /// Tells a reused number apart.
    pub generation: u64,
    /// Type and permissions, as in stat(2).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Names; for a directory 2 plus its subdirectories.
    pub nlink: u32,
    /// Size in bytes.
    pub size: u64,
    /// Allocated blocks of 4096 bytes.
    pub blocks: u64,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of the content.
    pub mtime: Timestamp,
    /// Last change of the inode.
    pub ctime: Timestamp,
    /// Creation.
    pub crtime: Timestamp,
    /// Device number of device nodes.
    pub rdev: u64,
    /// Reserved for the filesystem.
    pub flags: u32,
    /// Directories: cookie of the next entry.
    pub next_cookie: u64,
    /// Directories: the parent (the root is its own).
    pub parent: u64,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawInode {
    ino: U64,
    generation: U64,
    mode: U32,
    uid: U32,
    gid: U32,
    nlink: U32,
    size: U64,
    blocks: U64,
    atime: RawTime,
    mtime: RawTime,
    ctime: RawTime,
    crtime: RawTime,
    rdev: U64,
    flags: U32,
    next_cookie: U64,
    parent: U64,
}
const _: () = assert!(size_of::<RawInode>() == 124);

impl Inode {
    /// Its type; decoding made sure that there is one.
    pub fn kind(&self) -> FileKind {
        FileKind::from_mode(self.mode).unwrap_or(FileKind::Regular)
    }
}

impl Record for Inode {
    const WHAT: &'static str = "inode";

    fn encode(&self) -> Vec<u8> {
        RawInode {
            ino: self.ino.into(),
            generation: self.generation.into(),
            mode: self.mode.into(),
            uid: self.uid.into(),
            gid: self.gid.into(),
            nlink: self.nlink.into(),
            size: self.size.into(),
            blocks: self.blocks.into(),
            atime: RawTime::new(self.atime),
            mtime: RawTime::new(self.mtime),
            ctime: RawTime::new(self.ctime),
            crtime: RawTime::new(self.crtime),
            rdev: self.rdev.into(),
            flags: self.flags.into(),
            next_cookie: self.next_cookie.into(),
            parent: self.parent.into(),
        }
        .as_bytes()
        .to_vec()
    }

    fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let raw = RawInode::read_from_bytes(bytes).map_err(|_| Self::malformed("wrong length"))?;
        if FileKind::from_mode(raw.mode.get()).is_none() {
            return Err(Self::malformed("the mode has no file type"));
        }
        if raw.size.get() > i64::MAX as u64 {
            return Err(Self::malformed("the size is impossible"));
        }
        // Above are the numbers of the control files, and offsets that the kernel does not have.
        if raw.ino.get() > i64::MAX as u64 || raw.next_cookie.get() > i64::MAX as u64 {
            return Err(Self::malformed("a number is impossible"));
        }
        Ok(Inode {
            ino: raw.ino.get(),
            generation: raw.generation.get(),
            mode: raw.mode.get(),
            uid: raw.uid.get(),
            gid: raw.gid.get(),
            nlink: raw.nlink.get(),
            size: raw.size.get(),
            blocks: raw.blocks.get(),
            atime: raw.atime.decode()?,
            mtime: raw.mtime.decode()?,
            ctime: raw.ctime.decode()?,
            crtime: raw.crtime.decode()?,
            rdev: raw.rdev.get(),
            flags: raw.flags.get(),
            next_cookie: raw.next_cookie.get(),
            parent: raw.parent.get(),
        })
    }
}

/// A directory entry found by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirentByName {
    /// The inode it names.
    pub ino: u64,
    /// Type of that inode.
    pub kind: FileKind,
    /// Its place in the order of readdir.
    pub cookie: u64,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawDirentByName {
    ino: U64,
    cookie: U64,
    kind: u8,
}
const _: () = assert!(size_of::<RawDirentByName>() == 17);

impl Record for DirentByName {
    const WHAT: &'static str = "directory entry (by name)";

    fn encode(&self) -> Vec<u8> {
        RawDirentByName { ino: self.ino.into(), cookie: self.cookie.into(), kind: self.kind as u8 }.as_bytes().to_vec()
    }

    fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let raw = RawDirentByName::read_from_bytes(bytes).map_err(|_| Self::malformed("wrong length"))?;
        let kind = FileKind::from_byte(raw.kind).ok_or(Self::malformed("no such file type"))?;
        Ok(DirentByName { ino: raw.ino.get(), kind, cookie: raw.cookie.get() })
    }
}

/// A directory entry found by its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirentByCookie {
    /// The inode it names.
    pub ino: u64,
    /// Type of that inode.
    pub kind: FileKind,
    /// The name, 1 to 255 bytes.
    pub name: Vec<u8>,
}

impl Record for DirentByCookie {
    const WHAT: &'static str = "directory entry (by cookie)";

    fn encode(&self) -> Vec<u8> {
        let mut bytes = self.ino.to_le_bytes().to_vec();
        bytes.push(self.kind as u8);
        bytes.extend_from_slice(&self.name);
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let short = || Self::malformed("too short");
        let (&ino, rest) = bytes.split_first_chunk::<8>().ok_or_else(short)?;
        let (&kind, name) = rest.split_first().ok_or_else(short)?;
        if name.is_empty() || name.len() > NAME_BYTES {
            return Err(Self::malformed("the name's length is impossible"));
        }
        let kind = FileKind::from_byte(kind).ok_or(Self::malformed("no such file type"))?;
        Ok(DirentByCookie { ino: u64::from_le_bytes(ino), kind, name: name.to_vec() })
    }
}

/// Flags of an [`Extent`].
pub mod extent_flags {
    /// Allocated but never written: reads as zeros.
    pub const UNWRITTEN: u32 = 1;
    /// Other extents may name the same blocks: copy before writing.
    pub const SHARED: u32 = 2;
}

/// Where consecutive blocks of a file lie on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// First block on the device.
    pub device_block: u64,
    /// Number of blocks.
    pub len_blocks: u64,
    /// See [`extent_flags`].
    pub flags: u32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawExtent {
    device_block: U64,
    len_blocks: U64,
    flags: U32,
}
const _: () = assert!(size_of::<RawExtent>() == 20);

impl Record for Extent {
    const WHAT: &'static str = "extent";

    fn encode(&self) -> Vec<u8> {
        RawExtent { device_block: self.device_block.into(), len_blocks: self.len_blocks.into(), flags: self.flags.into() }
            .as_bytes()
            .to_vec()
    }

    fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let raw = RawExtent::read_from_bytes(bytes).map_err(|_| Self::malformed("wrong length"))?;
        if raw.len_blocks.get() == 0 {
            return Err(Self::malformed("it is empty"));
        }
        if raw.flags.get() & !(extent_flags::UNWRITTEN | extent_flags::SHARED) != 0 {
            return Err(Self::malformed("unknown flags"));
        }
        Ok(Extent { device_block: raw.device_block.get(), len_blocks: raw.len_blocks.get(), flags: raw.flags.get() })
    }
}

/// Blocks that several extents name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SharedRun {
    /// Number of blocks.
    pub len_blocks: u64,
    /// Extents that name each of them, at least 2.
    pub references: u32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawSharedRun {
    len_blocks: U64,
    references: U32,
}
const _: () = assert!(size_of::<RawSharedRun>() == 12);

impl Record for SharedRun {
    const WHAT: &'static str = "shared run";

    fn encode(&self) -> Vec<u8> {
        RawSharedRun { len_blocks: self.len_blocks.into(), references: self.references.into() }.as_bytes().to_vec()
    }

    fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let raw = RawSharedRun::read_from_bytes(bytes).map_err(|_| Self::malformed("wrong length"))?;
        if raw.len_blocks.get() == 0 {
            return Err(Self::malformed("it is empty"));
        }
        Ok(SharedRun { len_blocks: raw.len_blocks.get(), references: raw.references.get() })
    }
}

fn number<T: Record>(bytes: &[u8]) -> Result<u64, RecordError> {
    let bytes = bytes.try_into().map_err(|_| T::malformed("wrong length"))?;
    Ok(u64::from_le_bytes(bytes))
}

/// Length of a free or quarantined run, in blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockCount(pub u64);

impl Record for BlockCount {
    const WHAT: &'static str = "block count";

    fn encode(&self) -> Vec<u8> {
        self.0.to_le_bytes().to_vec()
    }

    fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        match number::<Self>(bytes)? {
            0 => Err(Self::malformed("it is empty")),
            blocks => Ok(BlockCount(blocks)),
        }
    }
}

/// Value of a counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counter(pub u64);

impl Record for Counter {
    const WHAT: &'static str = "counter";

    fn encode(&self) -> Vec<u8> {
        self.0.to_le_bytes().to_vec()
    }

    fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        number::<Self>(bytes).map(Counter)
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use super::*;

    pub(crate) fn sample_inode() -> Inode {
        Inode {
            ino: 5,
            generation: 6,
            mode: libc::S_IFREG | 0o4755,
            uid: 1000,
            gid: 100,
            nlink: 2,
            size: 1 << 44,
            blocks: 77,
            atime: Timestamp { sec: -1, nsec: 999_999_999 },
            mtime: Timestamp { sec: 1 << 33, nsec: 1 },
            ctime: Timestamp { sec: 3, nsec: 0 },
            crtime: Timestamp::default(),
            rdev: 0x0801,
            flags: 1,
            next_cookie: 9,
            parent: 1,
        }
    }

    fn round_trip<T: Record + Debug + PartialEq>(value: T) {
        let bytes = value.encode();
        assert_eq!(T::decode(&bytes).as_ref(), Ok(&value));
        // Whatever is cut off or flipped, decoding answers; the value may differ, nothing panics.
        for length in 0..bytes.len() {
            let _ = T::decode(&bytes[..length]);
        }
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let _ = T::decode(&bad);
        }
    }

    #[test]
    fn records_survive_the_round_trip() {
        round_trip(sample_inode());
        round_trip(DirentByName { ino: 4, kind: FileKind::Symlink, cookie: 8 });
        round_trip(DirentByCookie { ino: 4, kind: FileKind::Fifo, name: vec![0xff; 255] });
        round_trip(Extent { device_block: 4, len_blocks: 9, flags: extent_flags::SHARED });
        round_trip(SharedRun { len_blocks: 9, references: 2 });
        round_trip(BlockCount(4));
        round_trip(Counter(u64::MAX));
    }

    #[test]
    fn impossible_values_are_errors() {
        assert!(Extent::decode(&[0; 20]).is_err());
        assert!(Inode::decode(&[0; 124]).is_err());
        assert!(BlockCount::decode(&[0; 8]).is_err());
        assert!(DirentByName::decode(&[0; 17]).is_err());
        let mut late = sample_inode();
        late.atime.nsec = 1_000_000_000;
        assert!(Inode::decode(&late.encode()).is_err());
        assert!(Inode::decode(&Inode { ino: 1 << 63, ..sample_inode() }.encode()).is_err());
        assert!(Inode::decode(&Inode { next_cookie: u64::MAX, ..sample_inode() }.encode()).is_err());
    }

    #[test]
    fn kinds_and_modes_agree() {
        for (kind, bits) in FileKind::ALL {
            assert_eq!(FileKind::from_mode(bits | 0o777), Some(kind));
            assert_eq!(kind.mode_bits(), bits);
        }
        assert_eq!(FileKind::from_mode(0o777), None);
    }
}
