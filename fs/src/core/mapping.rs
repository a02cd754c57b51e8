//! What the mapping engine asks of the filesystem.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use peerfs_blockdev::BLOCK_BYTES;
use peerfs_p2p::{DirectPolicy, Extent, ExtentState, PinSurvey, Range};

use super::extent_map::Segment;
use super::io::{block_of, blocks_for};
use super::{Core, Result};
use crate::coherence::Coherence;
use crate::store::extent_flags;
use crate::types::{Attr, Handle, HandleMode, Ino};

/// What is known of an open file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HandleInfo {
    /// The file.
    pub ino: Ino,
    /// Open for reading.
    pub read: bool,
    /// Open for writing.
    pub write: bool,
    /// How it meets the page cache.
    pub mode: HandleMode,
}

/// The extents of a part of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtentSurvey {
    /// It is a regular file; otherwise `extents` is empty.
    pub regular: bool,
    /// Size in bytes.
    pub size: u64,
    /// Cover the range (rounded out to blocks) up to the block-rounded size, sorted, without gaps.
    pub extents: Vec<Extent>,
}

impl Core {
    /// Whom to ask about mappings from now on.
    pub fn set_coherence(&self, coherence: Arc<dyn Coherence>) {
        *crate::sync::write(&self.coherence) = coherence;
    }

    /// Where a range of a file lies. `None`: there is no such inode.
    pub fn survey_extents(&self, ino: Ino, range: Range) -> Option<ExtentSurvey> {
        let inode = self.inode(ino).ok()?;
        if !inode.is_regular() {
            return Some(ExtentSurvey { regular: false, size: inode.size(), extents: Vec::new() });
        }
        self.with_extents(&inode, |map| {
            let size = inode.size();
            let end = blocks_for(range.end.min(size));
            let start = block_of(range.start);
            let segments = match start < end {
                true => map.segments(start, end),
                false => Vec::new(),
            };
            let parts = segments.iter().flat_map(|segment| self.parts_by_owners(segment));
            Ok(ExtentSurvey { regular: true, size, extents: parts.map(|(part, shared)| to_extent(&part, shared)).collect() })
        })
        .ok()
    }

    /// A peer may write to the file: the side effects of a write(2) on times and mode.
    pub fn touch_written(&self, ino: Ino) -> Result<()> {
        self.admit_change()?;
        self.mark_written(&self.inode(ino)?)
    }

    /// An open file.
    pub fn handle_info(&self, handle: Handle) -> Option<HandleInfo> {
        let open = self.handles.file(handle).ok()?;
        Some(HandleInfo { ino: open.inode.ino, read: open.read, write: open.write, mode: open.mode })
    }

    /// Cached handles of the file that are open for writing.
    pub fn cpu_writers(&self, ino: Ino) -> u32 {
        self.cache.peek(ino).map_or(0, |inode| inode.cpu_writers.load(Ordering::Acquire))
    }

    /// Cached handles of the file, for pins, which cannot be taken back when one is used.
    pub fn cached_handles(&self, ino: Ino) -> PinSurvey {
        let Some(inode) = self.cache.peek(ino) else { return PinSurvey::default() };
        PinSurvey {
            left_bytes: 0,
            cached_handles: inode.cached_opens.load(Ordering::SeqCst),
            cached_writers: inode.cpu_writers.load(Ordering::SeqCst),
        }
    }

    /// How often a write from the page cache failed. The kernel drops the page all the same.
    pub fn lost_write_backs(&self, ino: Ino) -> u64 {
        self.cache.peek(ino).map_or(0, |inode| inode.lost_write_backs.load(Ordering::SeqCst))
    }

    /// Attributes.
    pub fn attr(&self, ino: Ino) -> Result<Attr> {
        Ok(self.inode(ino)?.attr())
    }

    /// The file's own policy, if it has one; an inode that cannot be read has none.
    pub fn direct_policy(&self, ino: Ino) -> Option<DirectPolicy> {
        let inode = self.inode(ino).ok()?;
        self.policy_of(&inode).ok().flatten()
    }

    /// Context ids that no mount of this volume has had or will have. Durable on return.
    pub fn reserve_context_ids(&self, count: u64) -> Result<std::ops::Range<u64>> {
        Ok(self.volume.reserve_context_ids(count)?)
    }

    /// Nothing can be changed: mounted so, or since a commit failed.
    pub fn read_only(&self) -> bool {
        !self.is_writable()
    }
}

fn to_extent(segment: &Segment, shared: bool) -> Extent {
    let state = match segment.extent {
        None => ExtentState::Hole,
        Some(extent) if extent.flags & extent_flags::UNWRITTEN != 0 => ExtentState::Unwritten,
        Some(extent) => ExtentState::Mapped { device_offset: extent.device_block * BLOCK_BYTES, shared },
    };
    Extent { file_offset: segment.file_block * BLOCK_BYTES, length: segment.blocks * BLOCK_BYTES, state }
}
