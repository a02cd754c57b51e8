//! SEEK_DATA and SEEK_HOLE beside shared mappings.
//!
//! A store to a mapped page of a hole is data, but the server hears of it when the kernel writes the page back. A program
//! that copies by these calls (cp does) would leave it out. So where a hole is about to be answered, and somebody could
//! have stored there, its pages are written back first, by dropping them. The kernel keeps write(2) out of a file while
//! it seeks, so none of those pages is about to be written by a request that we have not seen.

use peerfs_p2p::Range;

use crate::cpu_cache::CpuCache;
use crate::error::Result;
use crate::ops::Operations;
use crate::types::{Handle, Ino, SeekWhence};

/// Answers a seek in a file that somebody has open for writing. Writes pages back, so it must not be called from a
/// thread that serves requests.
pub(super) fn seek(
    ops: &dyn Operations,
    cache: &dyn CpuCache,
    (ino, handle): (Ino, Handle),
    offset: u64,
    whence: SeekWhence,
) -> Result<u64> {
    if whence == SeekWhence::Data {
        write_back(cache, ino, offset, ops.lseek(handle, offset, SeekWhence::Data));
        return ops.lseek(handle, offset, SeekWhence::Data);
    }
    let mut hole = ops.lseek(handle, offset, SeekWhence::Hole)?;
    loop {
        write_back(cache, ino, hole, ops.lseek(handle, hole, SeekWhence::Data));
        let found = ops.lseek(handle, hole, SeekWhence::Hole);
        match found {
            Ok(found) if found > hole => hole = found,
            // The hole that every file ends with has no pages.
            _ => return Ok(hole),
        }
    }
}

/// Writes back what is cached of a hole, which ends where data was found, or with the file.
fn write_back(cache: &dyn CpuCache, ino: Ino, start: u64, data: Result<u64>) {
    let hole = Range { start, end: data.unwrap_or(u64::MAX) };
    if !hole.is_empty()
        && let Err(error) = cache.invalidate(ino, hole)
    {
        tracing::debug!(ino, %error, "pages of a hole could not be written back");
    }
}
