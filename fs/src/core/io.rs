//! Moving blocks of files: every request of an operation is under way before any is waited for.

use peerfs_blockdev::{BLOCK_BYTES, Io, IoBuf, Ticket};
use peerfs_p2p::Range;

use super::Core;
use super::cow::Change;
use super::extent_map::{ExtentMap, Segment, Touched};
use super::inode::{Content, Inode};
use crate::error::{FsError, Result};
use crate::store::{BlockRange, Extent, Key, Record, SUPERBLOCK_BLOCKS};
use crate::types::Ino;

/// Largest size of a file in bytes (16 TiB).
pub(super) const MAX_FILE_BYTES: u64 = 16 << 40;
/// Extent records read at a time.
const EXTENTS_AT_ONCE: usize = 4096;

/// Blocks to write.
pub(super) struct Piece {
    pub device_block: u64,
    pub buf: IoBuf,
}

/// The block that a byte lies in.
pub(super) fn block_of(offset: u64) -> u64 {
    offset / BLOCK_BYTES
}

/// The number of blocks that hold `bytes`.
pub(super) fn blocks_for(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK_BYTES)
}

/// Growing from `size` to `new_size` changes part of the block that the file ends in: the range to close to peers
/// meanwhile. The kernel lets one such change of a file in at a time.
pub(super) fn changed_tail(size: u64, new_size: u64) -> Option<Range> {
    (new_size > size && !size.is_multiple_of(BLOCK_BYTES)).then_some(Range { start: size, end: new_size })
}

/// Waits for all requests, also after a failed one; the first error counts.
fn wait_all(tickets: Vec<Ticket>) -> Result<Vec<Option<IoBuf>>> {
    let results: Vec<_> = tickets.into_iter().map(Ticket::wait).collect();
    Ok(results.into_iter().collect::<std::result::Result<_, _>>()?)
}

impl Core {
    fn submit_read(&self, device_block: u64, blocks: u64) -> Ticket {
        let buf = self.device.buffer((blocks * BLOCK_BYTES) as usize);
        self.device.submit(Io::Read { offset: device_block.saturating_mul(BLOCK_BYTES), buf })
    }

    /// The content of consecutive stretches in one buffer. Straight into it when there is only one.
    pub(super) fn read_segments(&self, segments: &[Segment]) -> Result<IoBuf> {
        if let [only] = segments
            && let Some(device_block) = only.written()
        {
            return self.read_blocks(device_block, only.blocks);
        }
        let pending: Vec<Option<Ticket>> =
            segments.iter().map(|segment| Some(self.submit_read(segment.written()?, segment.blocks))).collect();
        let total: u64 = segments.iter().map(|segment| segment.blocks).sum();
        let mut whole = self.device.buffer((total * BLOCK_BYTES) as usize);
        let mut failure = None;
        let mut at = 0;
        for (segment, ticket) in segments.iter().zip(pending) {
            let length = (segment.blocks * BLOCK_BYTES) as usize;
            let target = &mut whole[at..at + length];
            at += length;
            match ticket.map(Ticket::wait) {
                None => target.fill(0),
                Some(Ok(Some(part))) => target.copy_from_slice(&part[..length]),
                Some(Ok(None)) => failure = failure.or(Some(no_buffer())),
                Some(Err(error)) => failure = failure.or(Some(error.into())),
            }
        }
        match failure {
            Some(error) => Err(error),
            None => Ok(whole),
        }
    }

    /// Consecutive device blocks.
    pub(super) fn read_blocks(&self, device_block: u64, blocks: u64) -> Result<IoBuf> {
        self.submit_read(device_block, blocks).wait()?.ok_or_else(no_buffer)
    }

    /// Writes all pieces and waits for them.
    pub(super) fn write_pieces(&self, pieces: Vec<Piece>) -> Result<()> {
        let tickets = pieces
            .into_iter()
            .map(|piece| self.device.submit(Io::Write { offset: piece.device_block.saturating_mul(BLOCK_BYTES), buf: piece.buf }))
            .collect();
        wait_all(tickets).map(drop)
    }

    /// Zeros bytes `start..end` of one block, if it holds data.
    pub(super) fn zero_in_block(
        &self,
        inode: &Inode,
        content: &mut Content,
        (start, end): (u64, u64),
        change: &mut Change<'_>,
    ) -> Result<()> {
        let block = block_of(start);
        if start >= end {
            return Ok(());
        }
        self.unshare(inode, content, block, block + 1, change)?;
        let segments = self.extents(inode, content)?.segments(block, block + 1);
        let Some(device_block) = segments.first().and_then(Segment::written) else {
            return Ok(());
        };
        let mut buf = self.read_blocks(device_block, 1)?;
        let base = block * BLOCK_BYTES;
        buf[(start - base) as usize..(end - base) as usize].fill(0);
        self.write_pieces(vec![Piece { device_block, buf }])
    }

    /// Before the file grows: what lies behind its end in the last block must not come to light.
    pub(super) fn zero_tail(&self, inode: &Inode, content: &mut Content, size: u64, change: &mut Change<'_>) -> Result<()> {
        self.zero_in_block(inode, content, (size, size.next_multiple_of(BLOCK_BYTES)), change)
    }

    /// The extents of a regular file, from its records if this is their first use.
    pub(super) fn extents<'a>(&self, inode: &Inode, content: &'a mut Content) -> Result<&'a mut ExtentMap> {
        if content.dead {
            return Err(FsError::errno(libc::ENOENT));
        }
        if content.extents.is_none() {
            content.extents = Some(self.load_extents(inode.ino)?);
        }
        Ok(content.extents.get_or_insert_default())
    }

    /// After a change that failed half-way: back to what the records say. Of the extents it costs as much as the change
    /// touched.
    pub(super) fn revert(&self, inode: &Inode, content: &mut Content, touched: &Touched) {
        if let Some(map) = &mut content.extents
            && !self.restore(inode.ino, map, touched)
        {
            content.extents = None;
        }
        if let Ok(Some(record)) = self.volume.inode(inode.ino) {
            inode.attributes().record = record;
        }
    }

    fn restore(&self, ino: Ino, map: &mut ExtentMap, touched: &Touched) -> bool {
        touched.iter().for_each(|file_block| map.forget(*file_block));
        touched.iter().all(|&file_block| match self.get::<Extent>(Key::Extent(ino, file_block)) {
            Ok(Some(extent)) => map.load(file_block, extent),
            Ok(None) => true,
            Err(_) => false,
        })
    }

    /// Runs `with` on the extents with the content lock shared.
    pub(super) fn with_extents<T>(&self, inode: &Inode, with: impl FnOnce(&ExtentMap) -> Result<T>) -> Result<T> {
        if !inode.is_regular() {
            return Err(FsError::errno(libc::EINVAL));
        }
        loop {
            let content = inode.share();
            if let Some(map) = &content.extents {
                return with(map);
            }
            drop(content);
            self.extents(inode, &mut inode.exclude())?;
        }
    }

    fn load_extents(&self, ino: Ino) -> Result<ExtentMap> {
        let mut map = ExtentMap::default();
        let mut range = Key::extents_of(ino);
        let metadata = self.volume.metadata_extents();
        loop {
            let records = self.scan(range.clone(), EXTENTS_AT_ONCE)?;
            let Some((last, _)) = records.last() else {
                return Ok(map);
            };
            range.start = last.clone();
            range.start.push(0);
            for (key, value) in &records {
                let Key::Extent(_, file_block) = Key::decode(key).map_err(super::dir::damaged)? else {
                    continue;
                };
                let extent = Extent::decode(value).map_err(super::dir::damaged)?;
                let inside = file_block.checked_add(extent.len_blocks).is_some_and(|end| end <= block_of(MAX_FILE_BYTES));
                if !inside || !self.is_data(&extent, &metadata) || !map.load(file_block, extent) {
                    return Err(FsError::with_context(
                        libc::EIO,
                        format!("extent {file_block} of inode {ino} is impossible; run `peerfs fsck`"),
                    ));
                }
            }
        }
    }

    /// It lies where files may: whoever wrote to one that does not would destroy the volume.
    fn is_data(&self, extent: &Extent, metadata: &[BlockRange]) -> bool {
        let range = BlockRange::new(extent.device_block, extent.len_blocks);
        range.is_within(SUPERBLOCK_BLOCKS, self.total_blocks) && !metadata.iter().any(|owned| owned.overlaps(range))
    }
}

fn no_buffer() -> FsError {
    FsError::with_context(libc::EIO, "the device gave no buffer back")
}
