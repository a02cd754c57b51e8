//! Reading, and what reading does to the access time.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use peerfs_blockdev::BLOCK_BYTES;
use peerfs_p2p::Range;

use super::Core;
use super::handles::OpenFile;
use super::inode::Inode;
use super::io::{block_of, blocks_for};
use super::time::{now, to_record};
use super::{Atime, FsError, Result};
use crate::types::{ReadData, SeekWhence};

/// Relatime updates an access time older than this.
const RELATIME_SECONDS: i64 = 24 * 3600;

impl Core {
    pub(super) fn do_read(&self, open: &OpenFile, offset: u64, length: u32, into_cache: bool) -> Result<ReadData> {
        let inode = &open.inode;
        // The kernel also reads through write-only handles, to fill pages it is going to change.
        if !open.read && !into_cache {
            return Err(FsError::errno(libc::EBADF));
        }
        if into_cache {
            Core::note_cached_read(inode, Range::new(offset, length.into()));
            let writers = inode.cpu_writers.load(Ordering::Acquire);
            self.coherence().cached_read(inode.ino, Range::new(offset, length.into()), writers);
        }
        let data = self.with_extents(inode, |map| {
            let end = offset.saturating_add(length.into()).min(inode.size());
            if offset >= end {
                return Ok(ReadData::empty());
            }
            let segments = map.segments(block_of(offset), blocks_for(end));
            let buf = self.read_segments(&segments)?;
            Ok(ReadData::new(buf, (offset % BLOCK_BYTES) as usize, (end - offset) as usize))
        })?;
        if open.read && !open.no_atime {
            self.accessed(inode);
        }
        Ok(data)
    }

    pub(super) fn do_lseek(&self, inode: &Inode, offset: u64, whence: SeekWhence) -> Result<u64> {
        self.with_extents(inode, |map| {
            let size = inode.size();
            if offset >= size {
                return Err(FsError::errno(libc::ENXIO));
            }
            let found = map.seek(block_of(offset), whence == SeekWhence::Data).map(|block| (block * BLOCK_BYTES).max(offset));
            match found {
                Some(found) if found < size => Ok(found),
                _ if whence == SeekWhence::Hole => Ok(size),
                _ => Err(FsError::errno(libc::ENXIO)),
            }
        })
    }

    /// Something was read: the access time follows, in memory, as the mount option says.
    pub(super) fn accessed(&self, inode: &Arc<Inode>) {
        let ignored = inode.is_directory() && !self.options.directory_atime;
        if ignored || self.options.atime == Atime::Never || !self.is_writable() {
            return;
        }
        let now = now();
        {
            let attributes = inode.attributes();
            let record = &attributes.record;
            let fresh = record.atime > record.mtime
                && record.atime > record.ctime
                && now.seconds.saturating_sub(record.atime.sec) < RELATIME_SECONDS;
            if self.options.atime == Atime::Relative && fresh {
                return;
            }
        }
        if inode.change_times(|record| record.atime = to_record(now)) {
            self.cache.mark_dirty(inode.ino);
        }
    }
}
