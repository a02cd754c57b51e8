//! The trait of operations, on top of everything else here.

use std::sync::atomic::Ordering;

use peerfs_p2p::Range;

use super::namespace::NewInode;
use super::{Core, Result, Synchronous};
use crate::ops::{Operations, Refetched};
use crate::store::FileKind;
use crate::types::*;

/// Inodes that one free block could hold the metadata of, for statfs.
const INODES_PER_BLOCK: u64 = 4;

impl Operations for Core {
    fn may_wait(&self, ino: Option<Ino>) -> bool {
        self.coherence().is_mapped(ino) || ino.is_some_and(|ino| self.is_being_refetched(ino))
    }

    fn is_synchronous(&self) -> bool {
        self.options.synchronous != Synchronous::Nothing
    }

    fn has_cached_writer(&self, ino: Ino) -> bool {
        self.cache.peek(ino).is_some_and(|inode| inode.cpu_writers.load(Ordering::SeqCst) > 0)
    }

    fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Attr> {
        self.do_lookup(parent, name)
    }

    fn forget(&self, ino: Ino, count: u64) {
        self.forget_lookups(ino, count);
    }

    fn getattr(&self, ino: Ino) -> Result<Attr> {
        self.attr(ino)
    }

    fn setattr(&self, caller: Caller, ino: Ino, _handle: Option<Handle>, set: SetAttr) -> Result<Attr> {
        self.changed_inode(ino, self.do_setattr(caller, ino, set))
    }

    fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        self.do_readlink(ino)
    }

    fn mknod(&self, caller: Caller, parent: Ino, name: &[u8], mode: u32, rdev: u32) -> Result<Attr> {
        let kind = match mode & libc::S_IFMT {
            0 => FileKind::Regular.mode_bits(),
            kind => kind,
        };
        if matches!(kind, libc::S_IFDIR | libc::S_IFLNK) {
            return Err(super::FsError::errno(libc::EINVAL));
        }
        let new = NewInode { caller, mode: kind | mode & 0o7777, rdev, target: None };
        self.made_name(parent, self.make(parent, name, new).map(|made| made.1))
    }

    fn mkdir(&self, caller: Caller, parent: Ino, name: &[u8], mode: u32) -> Result<Attr> {
        let new = NewInode { caller, mode: libc::S_IFDIR | mode & 0o7777, rdev: 0, target: None };
        self.made_name(parent, self.make(parent, name, new).map(|made| made.1))
    }

    fn unlink(&self, _caller: Caller, parent: Ino, name: &[u8]) -> Result<()> {
        self.changed_names(parent, self.do_unlink(parent, name))
    }

    fn rmdir(&self, _caller: Caller, parent: Ino, name: &[u8]) -> Result<()> {
        self.changed_names(parent, self.do_rmdir(parent, name))
    }

    fn symlink(&self, caller: Caller, parent: Ino, name: &[u8], target: &[u8]) -> Result<Attr> {
        self.made_name(parent, self.do_symlink(caller, parent, name, target))
    }

    fn rename(&self, caller: Caller, parent: Ino, name: &[u8], new_parent: Ino, new_name: &[u8], mode: RenameMode) -> Result<()> {
        self.changed_names(parent, self.do_rename(caller, (parent, name), (new_parent, new_name), mode))
    }

    fn link(&self, _caller: Caller, ino: Ino, new_parent: Ino, new_name: &[u8]) -> Result<Attr> {
        self.made_name(new_parent, self.do_link(ino, new_parent, new_name))
    }

    fn open(&self, caller: Caller, ino: Ino, flags: OpenFlags) -> Result<Opened> {
        self.do_open(caller, ino, flags)
    }

    fn create(
        &self,
        caller: Caller,
        parent: Ino,
        name: &[u8],
        mode: u32,
        exclusive: bool,
        flags: OpenFlags,
    ) -> Result<(Attr, Opened)> {
        let (attr, opened) = self.do_create(caller, parent, name, mode, exclusive, flags)?;
        let made = self.made_name(parent, Ok(attr));
        Ok((made.inspect_err(|_| self.do_release(opened.handle))?, opened))
    }

    fn read(&self, handle: Handle, offset: u64, length: u32, into_cache: bool) -> Result<ReadData> {
        self.do_read(&*self.handles.file(handle)?, offset, length, into_cache)
    }

    fn write(&self, caller: Caller, handle: Handle, offset: u64, data: &[u8], origin: WriteOrigin) -> Result<u32> {
        self.do_write(caller, &*self.handles.file(handle)?, offset, data, origin)
    }

    fn begin_buffered_write(&self, ino: Ino, range: Range) -> Option<Box<dyn Send>> {
        Core::begin_buffered_write(self, ino, range)
    }

    fn refetched(&self, ino: Ino, written: Range) -> Option<Refetched> {
        self.take_refetched(ino, written)
    }

    fn fsync(&self, handle: Handle, data_only: bool) -> Result<()> {
        self.do_fsync(&*self.handles.file(handle)?, data_only)
    }

    fn release(&self, handle: Handle) {
        self.do_release(handle);
    }

    fn fallocate(&self, caller: Caller, handle: Handle, mode: FallocateMode, offset: u64, length: u64) -> Result<()> {
        let open = self.handles.file(handle)?;
        self.changed_inode(open.inode.ino, self.do_fallocate(caller, &open, mode, offset, length))
    }

    fn lseek(&self, handle: Handle, offset: u64, whence: SeekWhence) -> Result<u64> {
        self.do_lseek(&self.handles.file(handle)?.inode, offset, whence)
    }

    fn opendir(&self, ino: Ino, flags: OpenFlags) -> Result<Handle> {
        self.do_opendir(ino, flags)
    }

    fn readdir(&self, handle: Handle, cookie: u64, plus: bool, sink: DirSink<'_>) -> Result<()> {
        self.do_readdir(&*self.handles.directory(handle)?, cookie, plus, sink)
    }

    fn fsyncdir(&self, handle: Handle) -> Result<()> {
        self.settle(&self.handles.directory(handle)?.inode, false)
    }

    fn releasedir(&self, handle: Handle) {
        self.do_releasedir(handle);
    }

    fn statfs(&self) -> Result<StatFs> {
        let space = self.volume.space();
        let inodes_free = space.free_for_data.saturating_mul(INODES_PER_BLOCK);
        Ok(StatFs {
            blocks: self.total_blocks,
            free: space.free,
            available: space.free_for_data,
            inodes: inodes_free.saturating_add(self.numbers.used(self)),
            inodes_free,
        })
    }

    fn setxattr(&self, caller: Caller, ino: Ino, name: &[u8], value: &[u8], mode: XattrMode) -> Result<()> {
        self.changed_inode(ino, self.do_setxattr(caller, ino, name, value, mode))
    }

    fn getxattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        self.do_getxattr(ino, name)
    }

    fn listxattr(&self, caller: Caller, ino: Ino) -> Result<Vec<u8>> {
        self.do_listxattr(caller, ino)
    }

    fn removexattr(&self, _caller: Caller, ino: Ino, name: &[u8]) -> Result<()> {
        self.changed_inode(ino, self.do_removexattr(ino, name))
    }

    fn sync(&self) -> Result<()> {
        self.do_sync()
    }
}
