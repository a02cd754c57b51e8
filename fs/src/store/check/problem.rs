//! What a check can find.

use std::fmt;

use super::super::BlockRange;

/// Problems listed in full; further ones are only counted.
const LISTED: usize = 1000;

/// One contradiction. The text is for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    /// A record cannot be understood.
    BadRecord {
        /// Which and why.
        reason: String,
    },
    /// Blocks that do not exist.
    OutsideDevice {
        /// Who names them.
        owner: Owner,
        /// The blocks.
        range: BlockRange,
    },
    /// Blocks with two owners.
    OwnedTwice {
        /// The blocks.
        range: BlockRange,
        /// One owner.
        first: Owner,
        /// The other.
        second: Owner,
    },
    /// Blocks without owner that are not free.
    Leaked {
        /// The blocks.
        range: BlockRange,
    },
    /// The number of owners of blocks is not the recorded one.
    WrongReferences {
        /// The blocks.
        range: BlockRange,
        /// Owners found: extents, and the quarantine.
        counted: u32,
        /// Number recorded; 0 without a record, which is right for one owner.
        recorded: u32,
    },
    /// A name of an inode that does not exist.
    DanglingName {
        /// Directory.
        parent: u64,
        /// Name, made printable.
        name: String,
        /// The inode that is missing.
        ino: u64,
    },
    /// The entry by name and the one by cookie differ, or the type differs from the inode's.
    EntryMismatch {
        /// Directory.
        parent: u64,
        /// Name, made printable.
        name: String,
    },
    /// An entry with a cookie that the directory would hand out again.
    CookieReused {
        /// Directory.
        parent: u64,
        /// Cookie.
        cookie: u64,
    },
    /// Entries, extents, attributes or a link's target of an inode that does not exist or is of another type.
    WrongOwner {
        /// What it is.
        what: &'static str,
        /// The inode.
        ino: u64,
    },
    /// The link count is not the number of names.
    WrongLinkCount {
        /// The inode.
        ino: u64,
        /// Names found (for directories 2 plus subdirectories).
        counted: u64,
        /// Count recorded.
        recorded: u32,
    },
    /// Not to be found from the root, and no orphan.
    Unreachable {
        /// The inode.
        ino: u64,
    },
    /// A directory with several names, or whose recorded parent is another.
    WrongParent {
        /// The directory.
        ino: u64,
    },
    /// An orphan that does not exist or has links.
    BadOrphan {
        /// The inode.
        ino: u64,
    },
    /// The number of blocks is not the recorded one.
    WrongBlockCount {
        /// The inode.
        ino: u64,
        /// Blocks found.
        counted: u64,
        /// Blocks recorded.
        recorded: u64,
    },
    /// Two extents for one block of a file, or written blocks beyond its end.
    BadExtent {
        /// The inode.
        ino: u64,
        /// First file block of the extent.
        file_block: u64,
        /// What is wrong.
        reason: &'static str,
    },
    /// A symbolic link without target, or whose size is not the target's length.
    BadSymlink {
        /// The inode.
        ino: u64,
    },
    /// The next inode number is in use already.
    InodeCounter {
        /// Largest inode number.
        largest: u64,
        /// Number recorded as next.
        next: u64,
    },
    /// There is no root directory.
    NoRoot,
}

/// Who owns blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// The superblock copies.
    Superblock,
    /// The metadata area.
    Metadata,
    /// A file.
    Inode(u64),
    /// Several files.
    Shared,
    /// A pin.
    Quarantine,
    /// Nobody.
    Free,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Owner::Superblock => f.write_str("the superblock"),
            Owner::Metadata => f.write_str("the metadata area"),
            Owner::Inode(ino) => write!(f, "inode {ino}"),
            Owner::Shared => f.write_str("shared extents"),
            Owner::Quarantine => f.write_str("the quarantine"),
            Owner::Free => f.write_str("the free space"),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::BadRecord { reason } => write!(f, "{reason}"),
            Problem::OutsideDevice { owner, range } => {
                write!(f, "{range} of {owner} are outside the device")
            }
            Problem::OwnedTwice { range, first, second } => {
                write!(f, "{range} belong to {first} and to {second}")
            }
            Problem::Leaked { range } => write!(f, "{range} are neither used nor free"),
            Problem::WrongReferences { range, counted, recorded } => {
                write!(f, "{range} have {counted} owners, {recorded} are recorded")
            }
            Problem::DanglingName { parent, name, ino } => {
                write!(f, "directory {parent}: \"{name}\" names inode {ino}, which does not exist")
            }
            Problem::EntryMismatch { parent, name } => {
                write!(f, "directory {parent}: the records of \"{name}\" disagree")
            }
            Problem::CookieReused { parent, cookie } => {
                write!(f, "directory {parent}: cookie {cookie} would be handed out again")
            }
            Problem::WrongOwner { what, ino } => {
                write!(f, "{what} of inode {ino}, which does not exist or cannot have any")
            }
            Problem::WrongLinkCount { ino, counted, recorded } => {
                write!(f, "inode {ino}: {counted} links found, {recorded} recorded")
            }
            Problem::Unreachable { ino } => {
                write!(f, "inode {ino} cannot be reached from the root and is no orphan")
            }
            Problem::WrongParent { ino } => {
                write!(f, "directory {ino} has several names or another parent than recorded")
            }
            Problem::BadOrphan { ino } => {
                write!(f, "orphan {ino} does not exist or still has links")
            }
            Problem::WrongBlockCount { ino, counted, recorded } => {
                write!(f, "inode {ino}: {counted} blocks found, {recorded} recorded")
            }
            Problem::BadExtent { ino, file_block, reason } => {
                write!(f, "inode {ino}: the extent at file block {file_block} {reason}")
            }
            Problem::BadSymlink { ino } => {
                write!(f, "symbolic link {ino}: its size is not the length of a target")
            }
            Problem::InodeCounter { largest, next } => {
                write!(f, "the next inode number is {next}, but {largest} is in use")
            }
            Problem::NoRoot => f.write_str("there is no root directory"),
        }
    }
}

/// Outcome of a check.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// What is wrong; at most 1000 are listed.
    pub problems: Vec<Problem>,
    /// Problems found, listed or not.
    pub problem_count: u64,
    /// Inodes of all types.
    pub inodes: u64,
    /// Directories among them.
    pub directories: u64,
    /// Inodes without name that wait for their last close.
    pub orphans: u64,
    /// Extents of files.
    pub extents: u64,
    /// Blocks of files, the metadata area, the superblock and the quarantine.
    pub used_blocks: u64,
    /// Free blocks.
    pub free_blocks: u64,
    /// Blocks of the volume.
    pub total_blocks: u64,
}

impl Report {
    /// Nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.problem_count == 0
    }

    pub(super) fn add(&mut self, problem: Problem) {
        self.problem_count += 1;
        if self.problems.len() < LISTED {
            self.problems.push(problem);
        }
    }
}
