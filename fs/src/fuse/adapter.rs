//! `fuser::Filesystem` in terms of [`Operations`] and [`Control`]: translation only.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use fuser::{
    BsdFileFlags, Errno, FileHandle, FopenFlags, Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags,
    PollEvents, PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus,
    ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request,
    TimeOrNow, WriteFlags,
};

use peerfs_p2p::Range;

use super::answer::{answer, contain};
use super::backing::Backings;
use super::pool::Pool;
use super::seek::seek;
use super::settle::Settle;
use super::translate::{TTL, attributes, caller, file_type, open_flags, set_time, timestamp};
use crate::control::{self, Control, ControlOpened};
use crate::cpu_cache::CpuCache;
use crate::error::{FsError, Result};
use crate::ops::Operations;
use crate::requests::{RequestCounts, RequestKind};
use crate::types::{
    Attr, Caller, FallocateMode, HandleMode, Ino, Opened, RenameMode, SeekWhence, SetAttr, WriteOrigin, XattrMode,
};

/// Requests the kernel may have in flight; fuser's default of 16 starves deep queues.
const MAX_BACKGROUND: u16 = 256;
const MAX_WRITE: u32 = 1 << 20;
/// Threads of the pools.
const POOL_THREADS: usize = 2048;
const OPEN_THREADS: usize = 512;
const CALL_THREADS: usize = 1024;

/// The FUSE side of a mount.
pub struct Adapter {
    ops: Arc<dyn Operations>,
    control: Arc<Control>,
    /// Requests that wait for revocations and device I/O only.
    pool: Pool,
    /// Opens, which may wait until reads and writes have been served.
    opens: Pool,
    /// Maps and other calls of clients, which may too, and which anybody may make wait.
    calls: Pool,
    settle: Settle,
    cache: Arc<dyn CpuCache>,
    backings: Backings,
    requests: Arc<RequestCounts>,
}

impl Adapter {
    /// An adapter for these operations and virtual files, and the page cache above them.
    pub fn new(ops: Arc<dyn Operations>, control: Arc<Control>, cache: Arc<dyn CpuCache>) -> Self {
        let requests = Arc::clone(control.requests());
        Adapter {
            ops,
            control,
            pool: Pool::new(POOL_THREADS),
            opens: Pool::new(OPEN_THREADS),
            calls: Pool::new(CALL_THREADS),
            settle: Settle::new(Arc::clone(&cache)),
            cache,
            backings: Backings::default(),
            requests,
        }
    }

    /// Runs a request here, or on the pool if it may have to wait.
    fn serve(&self, kind: RequestKind, ino: Option<Ino>, job: impl FnOnce(&dyn Operations) + Send + 'static) {
        if self.ops.may_wait(ino) {
            self.wait(kind, job);
        } else {
            self.here(kind, || job(&*self.ops));
        }
    }

    /// As [`Adapter::serve`], for changes: on some mounts they all wait for a commit.
    fn serve_change(&self, kind: RequestKind, ino: Option<Ino>, job: impl FnOnce(&dyn Operations) + Send + 'static) {
        if self.ops.is_synchronous() { self.wait(kind, job) } else { self.serve(kind, ino, job) }
    }

    /// As [`Adapter::serve_change`], for names, whose changes wait for nothing else.
    fn serve_name(&self, kind: RequestKind, job: impl FnOnce(&dyn Operations) + Send + 'static) {
        if self.ops.is_synchronous() { self.wait(kind, job) } else { self.here(kind, || job(&*self.ops)) }
    }

    /// Runs a request here.
    fn here(&self, kind: RequestKind, job: impl FnOnce()) {
        self.requests.add(kind);
        contain(kind.name(), job);
    }

    /// As [`Adapter::serve`], for what may have to empty the page cache.
    fn serve_open(&self, kind: RequestKind, ino: Option<Ino>, job: impl FnOnce(&dyn Operations) + Send + 'static) {
        if self.ops.may_wait(ino) || self.ops.is_synchronous() {
            let ops = Arc::clone(&self.ops);
            self.requests.add(kind);
            self.opens.run(move || contain(kind.name(), || job(&*ops)));
        } else {
            self.here(kind, || job(&*self.ops));
        }
    }

    /// Runs a request that waits for a commit or a revocation on the pool: a few slow flushes must not keep
    /// everybody else, acknowledgements of revocations among them, from being served.
    fn wait(&self, kind: RequestKind, job: impl FnOnce(&dyn Operations) + Send + 'static) {
        let ops = Arc::clone(&self.ops);
        self.requests.add(kind);
        self.pool.run(move || contain(kind.name(), || job(&*ops)));
    }
}

fn entry(reply: ReplyEntry, attr: Attr) {
    let ttl = if control::is_virtual(attr.ino) { control::TTL } else { TTL };
    reply.entry(&ttl, &attributes(&attr), Generation(attr.generation));
}

fn attr_reply(reply: ReplyAttr, attr: Attr) {
    let ttl = if control::is_virtual(attr.ino) { control::TTL } else { TTL };
    reply.attr(&ttl, &attributes(&attr));
}

fn empty(reply: ReplyEmpty, (): ()) {
    reply.ok();
}

/// Without KEEP_CACHE the kernel drops all pages of the file at the open, also those of a write(2) that is under way
/// (see [`Operations::refetched`]).
fn fopen_flags(opened: &Opened) -> FopenFlags {
    let mut flags = FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
    flags.set(FopenFlags::FOPEN_DIRECT_IO, opened.mode == HandleMode::Direct);
    flags.set(FopenFlags::FOPEN_KEEP_CACHE, opened.keep_cache);
    flags
}

/// Names of virtual files cannot be made, removed or replaced.
fn not_virtual(parents: &[INodeNo], names: &[&OsStr]) -> Result<()> {
    let reserved = names.iter().any(|name| control::is_reserved(name.as_bytes()));
    if reserved || parents.iter().any(|parent| control::is_virtual(parent.0)) {
        return Err(FsError::errno(libc::EPERM));
    }
    Ok(())
}

impl fuser::Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // Not FUSE_ATOMIC_O_TRUNC: the kernel would write dirty mapped pages back after our truncate, and the file
        // would grow again. Without it a truncating open is a truncate, which the kernel keeps apart from write-back.
        let wanted = [
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            // File handles (name_to_handle_at(2), NFS) outlive what the kernel has in memory: it then looks "." up.
            InitFlags::FUSE_EXPORT_SUPPORT,
            InitFlags::FUSE_DO_READDIRPLUS | InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_HAS_IOCTL_DIR,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_EXPLICIT_INVAL_DATA,
            // Without it the kernel takes the mask of an access list for the rights of the file's group.
            InitFlags::FUSE_POSIX_ACL,
            // A directory's default access control list stands in for the umask, and the kernel has not got it.
            InitFlags::FUSE_DONT_MASK,
            // Set-id bits are ours to clear; without it every write begins with a question about capabilities.
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
        ];
        for flags in wanted {
            if config.add_capabilities(flags).is_err() {
                tracing::debug!(?flags, "the kernel does not offer a capability; going on without");
            }
        }
        // One level is what memory files need; more would leave none for an overlay filesystem above this one.
        let passthrough = self.control.wants_passthrough()
            && config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
            && config.set_max_stack_depth(1).is_ok();
        self.control.set_passthrough(passthrough);
        let _nearest = config.set_max_background(MAX_BACKGROUND);
        let _nearest = config.set_max_write(MAX_WRITE);
        let _nearest = config.set_max_readahead(MAX_WRITE);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let caller = caller(request);
        self.here(RequestKind::Lookup, || {
            let outcome = match self.control.lookup(caller, parent.0, name.as_bytes()) {
                Some(outcome) => outcome,
                None => self.ops.lookup(parent.0, name.as_bytes()),
            };
            answer("lookup", reply, outcome, entry);
        });
    }

    fn forget(&self, _request: &Request, ino: INodeNo, count: u64) {
        if !control::is_virtual(ino.0) {
            // Never waits: a nameless inode that is mapped is freed by the commit thread.
            contain("forget", || self.ops.forget(ino.0, count));
        }
    }

    fn getattr(&self, _request: &Request, ino: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        self.here(RequestKind::Getattr, || {
            let outcome = if control::is_virtual(ino.0) { self.control.getattr(ino.0) } else { self.ops.getattr(ino.0) };
            answer("getattr", reply, outcome, attr_reply);
        });
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        if control::is_virtual(ino.0) {
            let only_size = mode.is_none() && uid.is_none() && gid.is_none() && size == Some(0);
            if !only_size {
                return reply.error(Errno::EPERM);
            }
            self.here(RequestKind::Setattr, || answer("setattr", reply, self.control.truncate(ino.0), attr_reply));
            return;
        }
        let set =
            SetAttr { mode, uid, gid, size, atime: atime.map(set_time), mtime: mtime.map(set_time), ctime: ctime.map(timestamp) };
        let caller = caller(request);
        self.serve_change(RequestKind::Setattr, Some(ino.0), move |ops| {
            answer("setattr", reply, ops.setattr(caller, ino.0, handle.map(|h| h.0), set), attr_reply);
        });
    }

    fn readlink(&self, _request: &Request, ino: INodeNo, reply: ReplyData) {
        self.here(RequestKind::Readlink, || {
            answer("readlink", reply, self.ops.readlink(ino.0), |reply, target| reply.data(&target))
        });
    }

    fn mknod(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, rdev: u32, reply: ReplyEntry) {
        let (caller, name) = (Caller { umask, ..caller(request) }, name.to_owned());
        self.serve_name(RequestKind::Mknod, move |ops| {
            let outcome =
                not_virtual(&[parent], &[&name]).and_then(|()| ops.mknod(caller, parent.0, name.as_bytes(), mode, rdev));
            answer("mknod", reply, outcome, entry);
        });
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let (caller, name) = (Caller { umask, ..caller(request) }, name.to_owned());
        self.serve_name(RequestKind::Mkdir, move |ops| {
            let outcome = not_virtual(&[parent], &[&name]).and_then(|()| ops.mkdir(caller, parent.0, name.as_bytes(), mode));
            answer("mkdir", reply, outcome, entry);
        });
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (caller, name) = (caller(request), name.to_owned());
        self.serve_change(RequestKind::Unlink, None, move |ops| {
            let outcome = not_virtual(&[parent], &[&name]).and_then(|()| ops.unlink(caller, parent.0, name.as_bytes()));
            answer("unlink", reply, outcome, empty);
        });
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (caller, name) = (caller(request), name.to_owned());
        self.serve_name(RequestKind::Rmdir, move |ops| {
            let outcome = not_virtual(&[parent], &[&name]).and_then(|()| ops.rmdir(caller, parent.0, name.as_bytes()));
            answer("rmdir", reply, outcome, empty);
        });
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let (caller, name, target) = (caller(request), name.to_owned(), target.to_owned());
        self.serve_name(RequestKind::Symlink, move |ops| {
            let target = target.as_os_str().as_bytes();
            let outcome = not_virtual(&[parent], &[&name]).and_then(|()| ops.symlink(caller, parent.0, name.as_bytes(), target));
            answer("symlink", reply, outcome, entry);
        });
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mode = match flags {
            flags if flags.is_empty() => RenameMode::Replace,
            RenameFlags::RENAME_NOREPLACE => RenameMode::NoReplace,
            RenameFlags::RENAME_EXCHANGE => RenameMode::Exchange,
            RenameFlags::RENAME_WHITEOUT => RenameMode::Whiteout,
            flags if flags == RenameFlags::RENAME_WHITEOUT | RenameFlags::RENAME_NOREPLACE => RenameMode::WhiteoutNoReplace,
            _ => return reply.error(Errno::EINVAL),
        };
        let (caller, name, new_name) = (caller(request), name.to_owned(), new_name.to_owned());
        self.serve_change(RequestKind::Rename, None, move |ops| {
            let outcome = not_virtual(&[parent, new_parent], &[&name, &new_name])
                .and_then(|()| ops.rename(caller, parent.0, name.as_bytes(), new_parent.0, new_name.as_bytes(), mode));
            answer("rename", reply, outcome, empty);
        });
    }

    fn link(&self, request: &Request, ino: INodeNo, new_parent: INodeNo, new_name: &OsStr, reply: ReplyEntry) {
        let (caller, new_name) = (caller(request), new_name.to_owned());
        self.serve_name(RequestKind::Link, move |ops| {
            let outcome = not_virtual(&[ino, new_parent], &[&new_name])
                .and_then(|()| ops.link(caller, ino.0, new_parent.0, new_name.as_bytes()));
            answer("link", reply, outcome, entry);
        });
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let (caller, flags) = (caller(request), open_flags(flags.0));
        if control::is_virtual(ino.0) {
            self.here(RequestKind::Open, || self.open_virtual(caller, ino.0, flags, reply));
            return;
        }
        self.serve_open(RequestKind::Open, Some(ino.0), move |ops| {
            answer("open", reply, ops.open(caller, ino.0, flags), |reply, opened| {
                reply.opened(FileHandle(opened.handle), fopen_flags(&opened));
            });
        });
    }

    fn create(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, flags: i32, reply: ReplyCreate) {
        let (caller, name) = (Caller { umask, ..caller(request) }, name.to_owned());
        self.serve_open(RequestKind::Create, None, move |ops| {
            let exclusive = flags & libc::O_EXCL != 0;
            let outcome = not_virtual(&[parent], &[&name])
                .and_then(|()| ops.create(caller, parent.0, name.as_bytes(), mode, exclusive, open_flags(flags)));
            answer("create", reply, outcome, |reply, (attr, opened)| {
                let generation = Generation(attr.generation);
                reply.created(&TTL, &attributes(&attr), generation, FileHandle(opened.handle), fopen_flags(&opened));
            });
        });
    }

    fn read(
        &self,
        _request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        if control::is_device_memory(ino.0) {
            let control = Arc::clone(&self.control);
            self.requests.add(RequestKind::Read);
            return self.pool.run(move || {
                contain("read", || {
                    let outcome = control.read_device_memory(handle.0, offset, size, lock_owner.is_none());
                    answer("read", reply, outcome, |reply, data| reply.data(&data));
                });
            });
        }
        if control::is_virtual(ino.0) {
            self.here(RequestKind::Read, || {
                answer("read", reply, self.control.read(handle.0, offset, size), |reply, data| reply.data(&data));
            });
            return;
        }
        // The kernel names a lock owner for read(2) that bypasses its cache, and none when it fills the cache.
        let into_cache = lock_owner.is_none();
        self.serve(RequestKind::Read, Some(ino.0), move |ops| {
            answer("read", reply, ops.read(handle.0, offset, size, into_cache), |reply, data| reply.data(&data));
        });
    }

    fn write(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.requests.add(RequestKind::Write);
        let from_page_cache = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        if control::is_device_memory(ino.0) {
            let (control, data) = (Arc::clone(&self.control), data.to_vec());
            return self.pool.run(move || {
                contain("write", || {
                    let through_cache = from_page_cache || lock_owner.is_none();
                    let outcome = control.write_device_memory(handle.0, offset, &data, through_cache);
                    answer("write", reply, outcome, |reply, count| reply.written(count));
                });
            });
        }
        if control::is_virtual(ino.0) {
            let outcome = self.control.write(handle.0, data);
            contain("write", || answer("write", reply, outcome, |reply, count| reply.written(count)));
            return;
        }
        let origin = WriteOrigin {
            through_cache: from_page_cache || lock_owner.is_none(),
            from_page_cache,
            kill_suid: write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID),
            synchronous: flags.0 & (libc::O_SYNC | libc::O_DSYNC) != 0,
        };
        let range = Range::new(offset, data.len() as u64);
        let caller = caller(request);
        let settle = self.settle.clone();
        // Here and not where it is carried out, which may be later: reads of the same pages have to know.
        let under_way = match origin.is_buffered() {
            true => self.ops.begin_buffered_write(ino.0, range),
            false => None,
        };
        // Write-back may have to wait for a write(2) of the same pages, what is synchronous for the device.
        let durable = !origin.through_cache && (origin.synchronous || self.ops.is_synchronous());
        if from_page_cache || durable || self.ops.may_wait(Some(ino.0)) {
            let (ops, data) = (Arc::clone(&self.ops), data.to_vec());
            self.pool.run(move || {
                contain("write", || {
                    let outcome = ops.write(caller, handle.0, offset, &data, origin);
                    drop(under_way);
                    settle.answer(&*ops, ino.0, offset, origin, reply, outcome);
                });
            });
        } else {
            contain("write", || {
                let outcome = self.ops.write(caller, handle.0, offset, data, origin);
                drop(under_way);
                settle.answer(&*self.ops, ino.0, offset, origin, reply, outcome);
            });
        }
    }

    /// Every write reported its own error when it was made, so close(2) has nothing to ask: this answer
    /// makes the kernel stop asking.
    fn flush(&self, _request: &Request, _ino: INodeNo, _handle: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn release(
        &self,
        _request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        if control::is_virtual(ino.0) {
            self.backings.drop_handle(handle.0);
            self.requests.add(RequestKind::Release);
            let control = Arc::clone(&self.control);
            self.pool.run(move || contain("release", || control.release(handle.0)));
            return reply.ok();
        }
        self.serve(RequestKind::Release, None, move |ops| {
            ops.release(handle.0);
            reply.ok();
        });
    }

    fn fsync(&self, _request: &Request, ino: INodeNo, handle: FileHandle, data_only: bool, reply: ReplyEmpty) {
        if control::is_virtual(ino.0) {
            return reply.ok();
        }
        self.wait(RequestKind::Fsync, move |ops| answer("fsync", reply, ops.fsync(handle.0, data_only), empty));
    }

    fn opendir(&self, _request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.here(RequestKind::Opendir, || {
            let outcome =
                if control::is_virtual(ino.0) { Ok(control::DIR_HANDLE) } else { self.ops.opendir(ino.0, open_flags(flags.0)) };
            answer("opendir", reply, outcome, |reply, handle| reply.opened(FileHandle(handle), FopenFlags::empty()));
        });
    }

    fn readdir(&self, _request: &Request, ino: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        self.here(RequestKind::Readdir, || {
            if control::is_virtual(ino.0) {
                for entry in self.control.entries(ino.0).iter().filter(|entry| entry.cookie > offset) {
                    if reply.add(INodeNo(entry.ino), entry.cookie, file_type(entry.kind), OsStr::from_bytes(entry.name)) {
                        break;
                    }
                }
                return reply.ok();
            }
            let outcome = self.ops.readdir(handle.0, offset, false, &mut |entry| {
                !reply.add(INodeNo(entry.ino), entry.cookie, file_type(entry.kind), OsStr::from_bytes(entry.name))
            });
            answer("readdir", reply, outcome, |reply, ()| reply.ok());
        });
    }

    fn readdirplus(&self, _request: &Request, ino: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        self.here(RequestKind::Readdirplus, || {
            if control::is_virtual(ino.0) {
                for entry in self.control.entries(ino.0).iter().filter(|entry| entry.cookie > offset) {
                    let Some(attr) = self.entry_attributes(entry.ino) else { continue };
                    let (name, generation) = (OsStr::from_bytes(entry.name), Generation(attr.generation));
                    if reply.add(INodeNo(entry.ino), entry.cookie, name, &control::TTL, &attributes(&attr), generation) {
                        break;
                    }
                }
                return reply.ok();
            }
            let outcome = self.ops.readdir(handle.0, offset, true, &mut |entry| {
                let Some(attr) = entry.attr else { return true };
                let generation = Generation(attr.generation);
                let name = OsStr::from_bytes(entry.name);
                !reply.add(INodeNo(entry.ino), entry.cookie, name, &TTL, &attributes(attr), generation)
            });
            answer("readdirplus", reply, outcome, |reply, ()| reply.ok());
        });
    }

    fn releasedir(&self, _request: &Request, ino: INodeNo, handle: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        self.here(RequestKind::Releasedir, || {
            if !control::is_virtual(ino.0) {
                self.ops.releasedir(handle.0);
            }
            reply.ok();
        });
    }

    fn fsyncdir(&self, _request: &Request, ino: INodeNo, handle: FileHandle, _data_only: bool, reply: ReplyEmpty) {
        if control::is_virtual(ino.0) {
            return reply.ok();
        }
        self.wait(RequestKind::Fsyncdir, move |ops| answer("fsyncdir", reply, ops.fsyncdir(handle.0), empty));
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        self.here(RequestKind::Statfs, || {
            answer("statfs", reply, self.ops.statfs(), |reply, s| {
                reply.statfs(s.blocks, s.free, s.available, s.inodes, s.inodes_free, 4096, 255, 4096);
            });
        });
    }

    fn setxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        if control::is_virtual(ino.0) {
            return reply.error(Errno::EPERM);
        }
        let mode = match flags {
            0 => XattrMode::Any,
            libc::XATTR_CREATE => XattrMode::Create,
            libc::XATTR_REPLACE => XattrMode::Replace,
            _ => return reply.error(Errno::EINVAL),
        };
        let (caller, name, value) = (caller(request), name.to_owned(), value.to_vec());
        self.serve_change(RequestKind::Setxattr, Some(ino.0), move |ops| {
            answer("setxattr", reply, ops.setxattr(caller, ino.0, name.as_bytes(), &value, mode), empty);
        });
    }

    fn getxattr(&self, _request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.here(RequestKind::Getxattr, || {
            let outcome = if control::is_virtual(ino.0) {
                Err(FsError::errno(libc::ENODATA))
            } else {
                self.ops.getxattr(ino.0, name.as_bytes())
            };
            answer("getxattr", reply, outcome, |reply, value| sized(reply, size, &value));
        });
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.here(RequestKind::Listxattr, || {
            let outcome = if control::is_virtual(ino.0) { Ok(Vec::new()) } else { self.ops.listxattr(caller(request), ino.0) };
            answer("listxattr", reply, outcome, |reply, names| sized(reply, size, &names));
        });
    }

    fn removexattr(&self, request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        if control::is_virtual(ino.0) {
            return reply.error(Errno::EPERM);
        }
        let (caller, name) = (caller(request), name.to_owned());
        self.serve_change(RequestKind::Removexattr, Some(ino.0), move |ops| {
            answer("removexattr", reply, ops.removexattr(caller, ino.0, name.as_bytes()), empty);
        });
    }

    fn ioctl(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        _flags: IoctlFlags,
        command: u32,
        input: &[u8],
        out_size: u32,
        reply: ReplyIoctl,
    ) {
        self.requests.add(RequestKind::Ioctl);
        let (caller, input, control) = (caller(request), input.to_vec(), Arc::clone(&self.control));
        let job = move || {
            contain("ioctl", || {
                let outcome = control.ioctl(caller, ino.0, handle.0, command, &input, out_size as usize);
                answer("ioctl", reply, outcome, |reply, output| reply.ioctl(0, &output));
            });
        };
        // Acknowledgements must never queue behind what waits for them.
        if control::is_quick(command) { job() } else { self.calls.run(job) }
    }

    fn poll(
        &self,
        _request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        notifier: PollNotifier,
        _events: PollEvents,
        flags: PollFlags,
        reply: ReplyPoll,
    ) {
        if !control::is_virtual(ino.0) {
            return reply.poll(PollEvents::POLLIN | PollEvents::POLLOUT | PollEvents::POLLRDNORM | PollEvents::POLLWRNORM);
        }
        self.here(RequestKind::Poll, || {
            if flags.contains(PollFlags::FUSE_POLL_SCHEDULE_NOTIFY) {
                self.control.on_ready(handle.0, Box::new(move || drop(notifier.clone().notify())));
            }
            let ready =
                if self.control.is_ready(handle.0) { PollEvents::POLLIN | PollEvents::POLLRDNORM } else { PollEvents::empty() };
            reply.poll(ready);
        });
    }

    fn fallocate(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        if control::is_virtual(ino.0) {
            return reply.error(Errno::EPERM);
        }
        let keep_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        let mode = match mode & !libc::FALLOC_FL_KEEP_SIZE {
            0 => FallocateMode::Allocate { keep_size },
            libc::FALLOC_FL_PUNCH_HOLE if keep_size => FallocateMode::PunchHole,
            libc::FALLOC_FL_ZERO_RANGE => FallocateMode::ZeroRange { keep_size },
            _ => return reply.error(Errno::EOPNOTSUPP),
        };
        let caller = caller(request);
        self.serve_change(RequestKind::Fallocate, Some(ino.0), move |ops| {
            answer("fallocate", reply, ops.fallocate(caller, handle.0, mode, offset, length), empty);
        });
    }

    fn lseek(&self, _request: &Request, ino: INodeNo, handle: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let whence = match whence {
            libc::SEEK_DATA => SeekWhence::Data,
            libc::SEEK_HOLE => SeekWhence::Hole,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        if control::is_virtual(ino.0) {
            return reply.error(Errno::ESPIPE);
        }
        let send = |reply: ReplyLseek, offset: u64| reply.offset(offset as i64);
        if !self.ops.has_cached_writer(ino.0) {
            return self.here(RequestKind::Lseek, || answer("lseek", reply, self.ops.lseek(handle.0, offset, whence), send));
        }
        let (ops, cache) = (Arc::clone(&self.ops), Arc::clone(&self.cache));
        self.requests.add(RequestKind::Lseek);
        self.opens.run(move || {
            contain("lseek", || answer("lseek", reply, seek(&*ops, &*cache, (ino.0, handle.0), offset, whence), send));
        });
    }
}

impl Adapter {
    /// Of an entry of the control directory, whose `..` is a real directory.
    fn entry_attributes(&self, ino: Ino) -> Option<Attr> {
        if control::is_virtual(ino) { self.control.getattr(ino).ok() } else { self.ops.getattr(ino).ok() }
    }

    fn open_virtual(&self, caller: Caller, ino: Ino, flags: crate::types::OpenFlags, reply: ReplyOpen) {
        let direct = FopenFlags::FOPEN_DIRECT_IO;
        match self.control.open(caller, ino, flags) {
            Ok(ControlOpened::Plain(handle)) => reply.opened(FileHandle(handle), direct),
            Ok(ControlOpened::Grant { handle, memory }) => match reply.open_backing(&memory) {
                Ok(backing) => {
                    let backing = self.backings.keep(handle, backing);
                    reply.opened_passthrough(FileHandle(handle), direct, &backing);
                }
                Err(error) => {
                    tracing::warn!(%error, "the kernel refused a passthrough backing file");
                    self.control.release(handle);
                    reply.error(Errno::EIO);
                }
            },
            Err(error) => answer("open", reply, Err::<(), _>(error), |_, ()| ()),
        }
    }
}

/// getxattr and listxattr: the size alone is asked for with 0.
fn sized(reply: ReplyXattr, size: u32, value: &[u8]) {
    match size {
        0 => reply.size(value.len() as u32),
        size if value.len() <= size as usize => reply.data(value),
        _ => reply.error(Errno::ERANGE),
    }
}
