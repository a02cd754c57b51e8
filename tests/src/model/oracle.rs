//! What a file must contain, and what a decision about it may be.

use std::collections::HashMap;

use peerfs_abi::Reason;
use peerfs_p2p::Range;

/// Unit of allocation, bytes.
pub(super) const BLOCK: u64 = 4096;
/// What a power failure keeps or loses as a whole, bytes.
const SECTOR: usize = 512;

/// What is allocated for a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BlockState {
    Hole,
    Unwritten,
    Data,
}

/// A file as it must be.
#[derive(Debug, Clone, Default)]
pub(super) struct FileModel {
    bytes: Vec<u8>,
    /// May reach beyond the end of the file (preallocation).
    blocks: Vec<BlockState>,
    /// Every content that a sector had since it was last made durable.
    unsynced: HashMap<u64, Vec<[u8; SECTOR]>>,
    /// Something changed since it was last made durable.
    changed: bool,
}

impl FileModel {
    pub(super) fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The bytes of a range, cut off at the end of the file.
    pub(super) fn slice(&self, offset: u64, length: u64) -> &[u8] {
        let start = offset.min(self.size()) as usize;
        let end = offset.saturating_add(length).min(self.size()) as usize;
        &self.bytes[start..end]
    }

    pub(super) fn block(&self, number: u64) -> BlockState {
        self.blocks.get(number as usize).copied().unwrap_or(BlockState::Hole)
    }

    pub(super) fn block_count(&self) -> u64 {
        self.blocks.len() as u64
    }

    /// write(2), or a store of an importer.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        self.store(offset, data);
        self.mark(Range::new(offset, data.len() as u64), |_| BlockState::Data);
    }

    /// A store to the page cache: it allocates nothing until it is written back.
    pub(super) fn store(&mut self, offset: u64, data: &[u8]) {
        let end = offset as usize + data.len();
        self.note(offset, end as u64);
        if end > self.bytes.len() {
            self.bytes.resize(end, 0);
        }
        self.bytes[offset as usize..end].copy_from_slice(data);
        self.note(offset, end as u64);
    }

    /// A page was written back.
    pub(super) fn written_back(&mut self, page: u64) {
        self.changed = true;
        self.mark(Range::new(page * BLOCK, BLOCK), |_| BlockState::Data);
    }

    pub(super) fn truncate(&mut self, size: u64) {
        let (low, high) = (size.min(self.size()), size.max(self.size()));
        self.note(low, high);
        if size <= self.size() {
            self.blocks.truncate(size.div_ceil(BLOCK) as usize);
        }
        self.bytes.resize(size as usize, 0);
        self.note(low, high);
    }

    pub(super) fn allocate(&mut self, range: Range, keep_size: bool) {
        self.changed = true;
        self.mark(range, preallocated);
        self.grow(range.end, keep_size);
    }

    pub(super) fn punch(&mut self, range: Range) {
        self.changed = true;
        let whole = self.whole_blocks(range);
        self.zero(range);
        for block in whole.0..whole.1.min(self.block_count()) {
            self.blocks[block as usize] = BlockState::Hole;
        }
    }

    pub(super) fn zero_range(&mut self, range: Range, keep_size: bool) {
        self.changed = true;
        let whole = self.whole_blocks(range);
        self.mark(range, preallocated);
        for block in whole.0..whole.1 {
            self.blocks[block as usize] = BlockState::Unwritten;
        }
        self.zero(range);
        self.grow(range.end, keep_size);
    }

    /// Takes over what a crash left, after [`FileModel::check_after_crash`].
    pub(super) fn adopt(&mut self, bytes: Vec<u8>, blocks: Vec<BlockState>) {
        *self = FileModel { bytes, blocks, ..FileModel::default() };
    }

    /// Everything up to now is durable.
    pub(super) fn synced(&mut self) {
        self.unsynced.clear();
        self.changed = false;
    }

    /// What it is now need not survive a crash.
    pub(super) fn is_unsynced(&self) -> bool {
        self.changed
    }

    /// Each byte is one that the file had at that place since it was last made durable; `Err`: the first that is not.
    pub(super) fn check_after_crash(&self, found: &[u8]) -> Result<(), usize> {
        for (number, sector) in found.chunks(SECTOR).enumerate() {
            let now = self.slice((number * SECTOR) as u64, SECTOR as u64);
            let versions = self.unsynced.get(&(number as u64));
            for (at, byte) in sector.iter().enumerate() {
                let current = now.get(at).copied().unwrap_or(0) == *byte;
                let earlier = || versions.is_some_and(|all| all.iter().any(|version| version[at] == *byte));
                // Blocks that were allocated and never reached the device read as zeros.
                if !(current || earlier() || (versions.is_some() && *byte == 0)) {
                    return Err(number * SECTOR + at);
                }
            }
        }
        Ok(())
    }

    fn zero(&mut self, range: Range) {
        let range = range.intersect(Range { start: 0, end: self.size() });
        if range.is_empty() {
            return;
        }
        self.note(range.start, range.end);
        self.bytes[range.start as usize..range.end as usize].fill(0);
        self.note(range.start, range.end);
    }

    fn grow(&mut self, end: u64, keep_size: bool) {
        if !keep_size && end > self.size() {
            let old = self.size();
            self.bytes.resize(end as usize, 0);
            self.note(old, end);
        }
    }

    /// The blocks of a range that lose their content; one of which only bytes beyond the end are left out counts.
    fn whole_blocks(&self, range: Range) -> (u64, u64) {
        let first = range.start.div_ceil(BLOCK);
        let last = if range.end >= self.size() { range.end.div_ceil(BLOCK) } else { range.end / BLOCK };
        (first, last.max(first))
    }

    fn mark(&mut self, range: Range, state: impl Fn(BlockState) -> BlockState) {
        let (first, last) = ((range.start / BLOCK) as usize, range.end.div_ceil(BLOCK) as usize);
        if self.blocks.len() < last {
            self.blocks.resize(last, BlockState::Hole);
        }
        self.blocks[first..last].iter_mut().for_each(|block| *block = state(*block));
    }

    fn note(&mut self, start: u64, end: u64) {
        self.changed = true;
        for sector in start / SECTOR as u64..end.div_ceil(SECTOR as u64) {
            let mut content = [0; SECTOR];
            let now = self.slice(sector * SECTOR as u64, SECTOR as u64);
            content[..now.len()].copy_from_slice(now);
            let versions = self.unsynced.entry(sector).or_default();
            if !versions.contains(&content) {
                versions.push(content);
            }
        }
    }
}

fn preallocated(state: BlockState) -> BlockState {
    match state {
        BlockState::Hole => BlockState::Unwritten,
        state => state,
    }
}

/// What holds for a whole request.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Everywhere {
    /// The reason that every stretch with data has, if there is one.
    pub(super) refused: Option<Reason>,
    /// The policy is respect-cache.
    pub(super) respects_cache: bool,
}

/// Whether `answer` (`None`: direct) is possible for `part` of a request, which lies inside one block.
pub(super) fn is_plausible(state: BlockState, size: u64, part: Range, everywhere: Everywhere, answer: Option<Reason>) -> bool {
    let aligned = part.start.is_multiple_of(BLOCK) && (part.end.is_multiple_of(BLOCK) || part.end >= size);
    let certain = if part.start >= size {
        Some(Reason::BeyondEof)
    } else {
        match state {
            BlockState::Hole => Some(Reason::Hole),
            BlockState::Unwritten => Some(Reason::Unwritten),
            BlockState::Data if !aligned => Some(Reason::Misaligned),
            BlockState::Data => None,
        }
    };
    match (certain, everywhere.refused) {
        (Some(reason), _) => answer == Some(reason),
        (None, _) if everywhere.respects_cache && answer == Some(Reason::PageCached) => true,
        (None, Some(reason)) => answer == Some(reason) || answer == Some(Reason::ApertureFull),
        (None, None) => matches!(answer, None | Some(Reason::Busy | Reason::ApertureFull)),
    }
}
