//! An inode in memory: its record, its extents, and who uses it.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::extent_map::ExtentMap;
use super::refetch::RefetchWatch;
use super::reservation::Reservation;
use super::time::{from_record, to_record};
use crate::store::{FileKind, Inode as Record};
use crate::sync::{lock, read, write};
use crate::types::{Attr, Ino, Timestamp};

/// The inode has (or had) extended attributes.
pub(super) const FLAG_XATTRS: u32 = 1;

/// What the content lock guards. Held shared while blocks are read or overwritten in
/// place, exclusively while anything that goes into the inode's records changes.
#[derive(Debug, Default)]
pub(super) struct Content {
    /// Extents of a regular file; `None` until first used.
    pub extents: Option<ExtentMap>,
    /// Device blocks set aside for the next append.
    pub reservation: Option<Reservation>,
    /// The inode's records are gone.
    pub dead: bool,
}

/// What the attribute lock guards.
#[derive(Debug)]
pub(super) struct Attributes {
    /// As it will be written.
    pub record: Record,
    /// Times changed since it was last put into a batch.
    pub dirty: bool,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Inode {
    pub ino: Ino,
    pub kind: FileKind,
    content: RwLock<Content>,
    attributes: Mutex<Attributes>,
    /// Look-ups the kernel has not forgotten.
    pub lookups: AtomicU64,
    /// Open handles.
    pub opens: AtomicU32,
    /// Cached handles.
    pub cached_opens: AtomicU32,
    /// Cached handles open for writing.
    pub cpu_writers: AtomicU32,
    /// Writes from the page cache that failed: what they carried is lost.
    pub lost_write_backs: AtomicU64,
    /// The commit that the latest change of its records is part of.
    pub changed_in: AtomicU64,
    /// Used since the last sweep that looked.
    pub recent: AtomicBool,
    /// Parent of a directory; changes only under the rename lock.
    pub parent: AtomicU64,
    /// Pages that may hold old bytes.
    pub refetches: RefetchWatch,
    /// Encoded policy of direct mapping, see [`super::policy`].
    pub policy: AtomicU8,
}

impl Inode {
    /// A handle through the page cache is being opened.
    pub(super) fn count_cached(&self, write: bool) {
        self.cached_opens.fetch_add(1, Ordering::SeqCst);
        self.cpu_writers.fetch_add(u32::from(write), Ordering::SeqCst);
    }

    /// It was closed, or became a direct one.
    pub(super) fn uncount_cached(&self, write: bool) {
        self.cpu_writers.fetch_sub(u32::from(write), Ordering::SeqCst);
        self.cached_opens.fetch_sub(1, Ordering::SeqCst);
    }

    pub(super) fn new(record: Record) -> Self {
        Inode {
            ino: record.ino,
            kind: record.kind(),
            content: RwLock::default(),
            lookups: AtomicU64::new(0),
            opens: AtomicU32::new(0),
            cached_opens: AtomicU32::new(0),
            cpu_writers: AtomicU32::new(0),
            lost_write_backs: AtomicU64::new(0),
            changed_in: AtomicU64::new(0),
            recent: AtomicBool::new(true),
            parent: AtomicU64::new(record.parent),
            refetches: RefetchWatch::default(),
            policy: AtomicU8::new(0),
            attributes: Mutex::new(Attributes { record, dirty: false }),
        }
    }

    pub(super) fn share(&self) -> RwLockReadGuard<'_, Content> {
        read(&self.content)
    }

    pub(super) fn exclude(&self) -> RwLockWriteGuard<'_, Content> {
        write(&self.content)
    }

    pub(super) fn attributes(&self) -> MutexGuard<'_, Attributes> {
        lock(&self.attributes)
    }

    pub(super) fn is_directory(&self) -> bool {
        self.kind == FileKind::Directory
    }

    pub(super) fn is_regular(&self) -> bool {
        self.kind == FileKind::Regular
    }

    pub(super) fn size(&self) -> u64 {
        self.attributes().record.size
    }

    pub(super) fn nlink(&self) -> u32 {
        self.attributes().record.nlink
    }

    /// Nobody can reach it any more.
    pub(super) fn is_unused(&self) -> bool {
        self.lookups.load(Ordering::Acquire) == 0 && self.opens.load(Ordering::Acquire) == 0
    }

    pub(super) fn attr(&self) -> Attr {
        attr_of(&self.attributes().record)
    }

    /// Changes times only; they go into a batch at the next commit. True when the inode was clean.
    pub(super) fn change_times(&self, change: impl FnOnce(&mut Record)) -> bool {
        let mut attributes = self.attributes();
        change(&mut attributes.record);
        !std::mem::replace(&mut attributes.dirty, true)
    }
}

/// The attributes in a record.
pub(super) fn attr_of(record: &Record) -> Attr {
    Attr {
        ino: record.ino,
        generation: record.generation,
        mode: record.mode,
        uid: record.uid,
        gid: record.gid,
        nlink: record.nlink,
        size: record.size,
        blocks: record.blocks.saturating_mul(8),
        atime: from_record(record.atime),
        mtime: from_record(record.mtime),
        ctime: from_record(record.ctime),
        crtime: from_record(record.crtime),
        rdev: record.rdev as u32,
    }
}

/// Content changed now.
pub(super) fn stamp_content(record: &mut Record, now: Timestamp) {
    record.mtime = to_record(now);
    record.ctime = to_record(now);
}

/// Attributes changed now.
pub(super) fn stamp_change(record: &mut Record, now: Timestamp) {
    record.ctime = to_record(now);
}
