//! [`CpuCache`] through FUSE notifications and cachestat(2).

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;

use fuser::{INodeNo, Notifier};
use peerfs_p2p::{CacheProbe, Range};
use peerfs_sys::CacheState;

use crate::cpu_cache::CpuCache;
use crate::types::Ino;

/// The page cache above one FUSE mount.
#[derive(Default)]
pub struct FuseCache {
    session: OnceLock<(Notifier, u64)>,
}

impl FuseCache {
    /// Starts to work once the session exists. `device`: the mount's `st_dev`.
    pub fn connect(&self, notifier: Notifier, device: u64) {
        let _second_time_changes_nothing = self.session.set((notifier, device));
    }

    fn notify(&self, ino: Ino, offset: i64, length: i64) -> io::Result<()> {
        let Some((notifier, _)) = self.session.get() else { return Ok(()) };
        match notifier.inval_inode(INodeNo(ino), offset, length) {
            // The kernel does not know the inode, so it has nothing cached.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            outcome => outcome,
        }
    }

    /// The client's file, looked at through a descriptor of ours.
    fn open_probe(&self, ino: Ino, probe: CacheProbe) -> io::Result<OwnedFd> {
        let pid = peerfs_sys::thread_group(probe.tid)?;
        let named = peerfs_sys::name_descriptor(pid, probe.fd)?;
        // A client could name another file to hide its cached pages, or one of a filesystem that it serves itself
        // and that never answers us. So nothing of the file is touched before it is known to be ours.
        let device = self.session.get().map(|(_, device)| *device);
        let (found_device, found_ino) = peerfs_sys::identity(named.as_fd())?;
        if found_ino != ino || Some(found_device) != device {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        }
        peerfs_sys::open_named(named.as_fd())
    }
}

impl CpuCache for FuseCache {
    fn invalidate(&self, ino: Ino, range: Range) -> io::Result<()> {
        let offset = i64::try_from(range.start).unwrap_or(i64::MAX);
        let length = i64::try_from(range.length()).unwrap_or(i64::MAX - offset);
        self.notify(ino, offset, length)
    }

    fn invalidate_attributes(&self, ino: Ino) {
        if let Err(error) = self.notify(ino, -1, 0) {
            tracing::debug!(ino, %error, "attributes could not be invalidated");
        }
    }

    fn state(&self, ino: Ino, range: Range, probe: CacheProbe) -> io::Result<CacheState> {
        let file = self.open_probe(ino, probe)?;
        peerfs_sys::cachestat(file.as_fd(), range.start, range.length())
    }

    fn cached_ranges(&self, ino: Ino, range: Range, probe: CacheProbe) -> io::Result<Vec<Range>> {
        let file = self.open_probe(ino, probe)?;
        let cached = |range: Range| peerfs_sys::cachestat(file.as_fd(), range.start, range.length()).map(|state| state.cached);
        locate(range, &cached)
    }
}

/// Looks at cachestat(2) takes before what is left counts as cached as a whole.
const LOOKS_MAX: u32 = 256;
/// The page cache is looked at in pieces no smaller than this.
const LEAST_BYTES: u64 = 4096;

/// Halves the range wherever some of its pages are cached, so that a few pages do not stand for all of it.
fn locate(range: Range, cached: &dyn Fn(Range) -> io::Result<u64>) -> io::Result<Vec<Range>> {
    let mut found: Vec<Range> = Vec::new();
    let mut looks = 0;
    let mut rest = vec![range];
    while let Some(part) = rest.pop() {
        looks += 1;
        let pages = if looks > LOOKS_MAX { u64::MAX } else { cached(part)? };
        let whole = pages >= part.length().div_ceil(LEAST_BYTES);
        if pages > 0 && (whole || part.length() <= LEAST_BYTES) {
            match found.last_mut() {
                Some(last) if last.end == part.start => last.end = part.end,
                _ => found.push(part),
            }
        } else if pages > 0 {
            let middle = (part.start + part.length() / 2).next_multiple_of(LEAST_BYTES).min(part.end - 1);
            rest.push(Range { start: middle, ..part });
            rest.push(Range { end: middle, ..part });
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages_in(cached: &[u64], range: Range) -> u64 {
        cached.iter().filter(|page| Range::new(**page * 4096, 4096).overlaps(range)).count() as u64
    }

    #[test]
    fn cached_pages_are_found_where_they_are() {
        let cached = [0, 1, 2, 700, 4095];
        let all = Range { start: 0, end: (16 << 20) - 100 };
        let found = locate(all, &|range| Ok(pages_in(&cached, range))).expect("no error");
        let page = |number: u64, end: u64| Range { start: number * 4096, end: (end * 4096).min(all.end) };
        assert_eq!(found, [page(0, 3), page(700, 701), page(4095, 4096)]);
        assert_eq!(locate(all, &|_| Ok(0)).expect("no error"), []);
        let everything = locate(all, &|range| Ok(range.length().div_ceil(4096))).expect("no error");
        assert_eq!(everything, [all]);
    }

    #[test]
    fn a_cache_full_of_gaps_is_not_searched_for_long() {
        let looks = std::cell::Cell::new(0);
        let every_other = |range: Range| {
            looks.set(looks.get() + 1);
            Ok(if range.length() <= 4096 { (range.start / 4096) % 2 } else { range.length() / 8192 })
        };
        let found = locate(Range { start: 0, end: 1 << 30 }, &every_other).expect("no error");
        assert!(looks.get() <= LOOKS_MAX);
        assert_eq!(found.last().map(|last| last.end), Some(1 << 30), "what was not looked at counts as cached");
    }
}
