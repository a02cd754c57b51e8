//! Open files and directories.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use dashmap::DashMap;

use super::inode::Inode;
use super::namespace::{NewInode, check_name};
use super::{Core, FsError, Result, set_id};
use crate::types::{Attr, Caller, Handle, HandleMode, Ino, OpenFlags, Opened};

/// An open regular file.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub inode: Arc<Inode>,
    pub read: bool,
    pub write: bool,
    pub mode: HandleMode,
    /// Reading leaves the access time alone.
    pub no_atime: bool,
    /// What names it as the source of a clone, once somebody asked.
    name: OnceLock<u64>,
}

/// An open directory.
#[derive(Debug)]
pub(super) struct OpenDir {
    pub inode: Arc<Inode>,
    /// Listing leaves the access time alone.
    pub no_atime: bool,
    /// Cookies from here on were given out after the listing began.
    end: AtomicU64,
}

impl OpenDir {
    fn new(inode: Arc<Inode>, flags: OpenFlags) -> Self {
        let end = AtomicU64::new(next_cookie(&inode));
        OpenDir { inode, no_atime: flags.no_atime, end }
    }

    /// Where a listing that goes on after `cookie` ends, so that it does end while entries are made or renamed as fast as
    /// they are read. One that begins again, or comes from another listing, ends where the directory does now.
    pub(super) fn end_of_listing(&self, cookie: u64) -> u64 {
        if cookie == 0 || cookie >= self.end.load(Ordering::Relaxed) {
            self.end.store(next_cookie(&self.inode), Ordering::Relaxed);
        }
        self.end.load(Ordering::Relaxed)
    }
}

/// The cookie of the next entry. The kernel's offsets are signed; a cookie beyond them is damage, and listing ends there.
fn next_cookie(directory: &Inode) -> u64 {
    directory.attributes().record.next_cookie.min(i64::MAX as u64)
}

/// All handles; numbers are never reused, so a stale one is a failed look-up.
#[derive(Debug, Default)]
pub(super) struct Handles {
    last: AtomicU64,
    files: DashMap<Handle, Arc<OpenFile>>,
    directories: DashMap<Handle, Arc<OpenDir>>,
    /// Open files by their name as a source.
    names: DashMap<u64, Handle>,
}

impl Handles {
    fn next(&self) -> Handle {
        self.last.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(super) fn file(&self, handle: Handle) -> Result<Arc<OpenFile>> {
        self.files.get(&handle).map(|open| open.clone()).ok_or(FsError::errno(libc::EBADF))
    }

    /// A name that cannot be guessed; the same each time.
    pub(super) fn name(&self, handle: Handle, open: &OpenFile) -> Result<u64> {
        let random = peerfs_sys::random_u64().map_err(|error| FsError::with_context(libc::EIO, error.to_string()))?;
        let name = *open.name.get_or_init(|| random.max(1));
        self.names.insert(name, handle);
        // Closed meanwhile: whoever closed it may not have seen the name.
        if !self.files.contains_key(&handle) {
            self.names.remove(&name);
        }
        Ok(name)
    }

    /// The open file that a name stands for.
    pub(super) fn named(&self, name: u64) -> Option<Arc<OpenFile>> {
        let handle = *self.names.get(&name)?;
        self.file(handle).ok()
    }

    pub(super) fn directory(&self, handle: Handle) -> Result<Arc<OpenDir>> {
        self.directories.get(&handle).map(|open| open.clone()).ok_or(FsError::errno(libc::EBADF))
    }
}

impl Core {
    pub(super) fn do_open(&self, caller: Caller, ino: Ino, flags: OpenFlags) -> Result<Opened> {
        if flags.write || flags.truncate {
            self.admit_change()?;
        }
        let inode = self.inode(ino)?;
        if inode.is_directory() {
            return Err(FsError::errno(libc::EISDIR));
        }
        if !inode.is_regular() {
            return Err(FsError::errno(libc::EINVAL));
        }
        let opened = self.add_handle(&inode, flags);
        if flags.truncate
            && let Err(error) = self.truncate_opened(caller, &inode)
        {
            self.do_release(opened.handle);
            return Err(error);
        }
        Ok(opened)
    }

    /// O_TRUNC. Also an empty file gets new times and loses what is preallocated.
    fn truncate_opened(&self, caller: Caller, inode: &Arc<Inode>) -> Result<()> {
        self.resize(inode, 0, |txn| {
            set_id::end_unless_root(txn, inode, caller);
            Ok(())
        })
    }

    fn add_handle(&self, inode: &Arc<Inode>, flags: OpenFlags) -> Opened {
        inode.opens.fetch_add(1, Ordering::AcqRel);
        let mode = self.enter_mode(inode, flags);
        let handle = self.handles.next();
        let open = OpenFile {
            inode: inode.clone(),
            read: flags.read,
            write: flags.write,
            mode,
            no_atime: flags.no_atime,
            name: OnceLock::new(),
        };
        self.handles.files.insert(handle, Arc::new(open));
        Opened { handle, mode, keep_cache: !flags.truncate }
    }

    /// How a new handle meets the page cache. Counted first: a mapping or pin made from now on sees the handle, the
    /// hooks deal with earlier ones.
    fn enter_mode(&self, inode: &Inode, flags: OpenFlags) -> HandleMode {
        if flags.direct {
            return HandleMode::Direct;
        }
        inode.count_cached(flags.write);
        if self.coherence().must_open_direct(inode.ino, flags.write) {
            inode.uncount_cached(flags.write);
            return HandleMode::Direct;
        }
        if flags.write {
            self.coherence().writable_cached_open(inode.ino);
        }
        HandleMode::Cached
    }

    pub(super) fn do_create(
        &self,
        caller: Caller,
        parent: Ino,
        name: &[u8],
        mode: u32,
        exclusive: bool,
        flags: OpenFlags,
    ) -> Result<(Attr, Opened)> {
        check_name(name)?;
        self.admit_change()?;
        let directory = self.directory(parent)?;
        let parent_lock = directory.exclude();
        self.check_alive(&directory)?;
        if let Some(entry) = self.entry(&directory, name)? {
            if exclusive {
                return Err(FsError::errno(libc::EEXIST));
            }
            let inode = self.inode(entry.ino)?;
            inode.lookups.fetch_add(1, Ordering::AcqRel);
            drop(parent_lock);
            return match self.do_open(caller, inode.ino, flags) {
                Ok(opened) => Ok((inode.attr(), opened)),
                Err(error) => {
                    drop(inode);
                    self.forget_lookups(entry.ino, 1);
                    Err(error)
                }
            };
        }
        let new = NewInode { caller, mode: libc::S_IFREG | mode & 0o7777, rdev: 0, target: None };
        let (inode, attr) = self.make_in(&directory, name, new)?;
        drop(parent_lock);
        Ok((attr, self.add_handle(&inode, flags)))
    }

    pub(super) fn do_release(&self, handle: Handle) {
        let Some((_, open)) = self.handles.files.remove(&handle) else {
            return;
        };
        if let Some(name) = open.name.get() {
            self.handles.names.remove(name);
        }
        let inode = open.inode.clone();
        if open.mode == HandleMode::Cached {
            inode.uncount_cached(open.write);
        }
        drop(open);
        if inode.opens.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.drop_reservation(&inode);
            self.retire(inode);
        }
    }

    pub(super) fn do_opendir(&self, ino: Ino, flags: OpenFlags) -> Result<Handle> {
        let inode = self.directory(ino)?;
        inode.opens.fetch_add(1, Ordering::AcqRel);
        let handle = self.handles.next();
        self.handles.directories.insert(handle, Arc::new(OpenDir::new(inode, flags)));
        Ok(handle)
    }

    pub(super) fn do_releasedir(&self, handle: Handle) {
        let Some((_, open)) = self.handles.directories.remove(&handle) else {
            return;
        };
        let inode = open.inode.clone();
        drop(open);
        if inode.opens.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.retire(inode);
        }
    }
}
