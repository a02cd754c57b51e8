//! An open volume.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use peerfs_blockdev::BlockDevice;

use super::alloc::{AllocRequest, Allocation, Allocator, Recorded, Space};
use super::backend::Backend;
use super::format::{Summary, summarise};
use super::key::Key;
use super::kv::{CommitSeq, Kv, KvOptions};
use super::meta_area::MetaArea;
use super::records::{BlockCount, Extent, Inode, Record, SharedRun};
use super::super_store::SuperblockStore;
use super::superblock::SUPERBLOCK_BLOCKS;
use super::trim::Discarding;
use super::{Batch, BlockRange, Bytes, StoreError};

/// Records read at a time when something walks all of them.
pub(super) const SCAN_RECORDS: usize = 4096;
const DEFAULT_CACHE_BYTES: usize = 64 << 20;

/// How to open a volume.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// Never write to the device. A recovery that is due happens in memory.
    pub read_only: bool,
    /// Memory for the metadata's page cache, in bytes.
    pub cache_bytes: usize,
    /// Tell the device of blocks that are freed.
    pub discard: bool,
}

impl Default for OpenOptions {
    fn default() -> Self {
        OpenOptions { read_only: false, cache_bytes: DEFAULT_CACHE_BYTES, discard: false }
    }
}

/// An open volume; see [the module](super). All methods may be called from any thread.
///
/// Dropping it without [`Volume::close`] is the same as a crash.
#[derive(Debug)]
pub struct Volume {
    device: Arc<dyn BlockDevice>,
    superblock: Arc<SuperblockStore>,
    area: Arc<MetaArea>,
    kv: Kv,
    allocator: Arc<Allocator>,
    read_only: bool,
    pub(super) discarding: Discarding,
    was_clean: bool,
    pub(super) closed: AtomicBool,
    metadata_full: AtomicBool,
}

impl Volume {
    /// Opens a volume, which should have gone through [`super::open_probe`] in a child process first.
    pub fn open(device: Arc<dyn BlockDevice>, options: &OpenOptions) -> Result<Volume, StoreError> {
        let name = device.info().name;
        let superblock = Arc::new(SuperblockStore::load(device.clone())?);
        let current = superblock.current();
        if current.formatting {
            return Err(StoreError::Unfinished { device: name });
        }
        let area = MetaArea::new(device.clone(), superblock.clone());
        // Growing needs the free space, which is in the database: so a first look that writes nothing.
        let kv_options = KvOptions { cache_bytes: options.cache_bytes, check_integrity: false };
        let shadow = Kv::open(Backend::shadow(area.clone()), name.clone(), kv_options)?;
        let allocator = Arc::new(Allocator::new(
            recorded_space(&shadow)?,
            &current.chain.extents(),
            SUPERBLOCK_BLOCKS,
            current.device_blocks,
        )?);
        let kv = if options.read_only {
            shadow
        } else {
            drop(shadow);
            area.set_allocator(allocator.clone());
            superblock.update(|superblock| {
                superblock.clean = false;
                superblock.host_id = host_id();
                superblock.mount_count = superblock.mount_count.saturating_add(1);
            })?;
            let kv_options = KvOptions { cache_bytes: options.cache_bytes, check_integrity: false };
            Kv::open(Backend::Live(area.clone()), name, kv_options)?
        };
        let volume = Volume {
            device,
            superblock,
            area,
            kv,
            allocator,
            read_only: options.read_only,
            discarding: Discarding::new(options.discard),
            was_clean: current.clean,
            closed: AtomicBool::new(false),
            metadata_full: AtomicBool::new(false),
        };
        if !options.read_only {
            volume.end_quarantine()?;
        }
        Ok(volume)
    }

    /// Frees what pins of the previous mount kept: they ended with it.
    fn end_quarantine(&self) -> Result<(), StoreError> {
        let mut batch = Batch::new();
        self.allocator.quarantined().into_iter().for_each(|range| batch.release(range));
        if !batch.is_empty() {
            self.apply(batch)?;
        }
        Ok(())
    }

    /// Commits, marks the volume clean and ends its use; later calls do nothing. When the commit
    /// fails the volume stays open and the call may be repeated.
    pub fn close(&self) -> Result<(), StoreError> {
        if self.closed.swap(true, Ordering::AcqRel) || self.read_only {
            return Ok(());
        }
        if let Err(error) = self.commit() {
            self.closed.store(false, Ordering::Release);
            return Err(error);
        }
        self.discarding.wait();
        self.kv.close()?;
        self.superblock.update(|superblock| superblock.clean = true)?;
        Ok(())
    }

    /// The device it lies on.
    pub fn device(&self) -> &Arc<dyn BlockDevice> {
        &self.device
    }

    /// What the superblock says.
    pub fn summary(&self) -> Summary {
        summarise(&self.superblock.current())
    }

    /// Size in blocks of 4096 bytes.
    pub fn total_blocks(&self) -> u64 {
        self.superblock.current().device_blocks
    }

    /// Free space.
    pub fn space(&self) -> Space {
        self.allocator.space()
    }

    /// A range of blocks in parts, and whether each must not be written in place: it has more than one owner, or had
    /// until a change that is not durable yet.
    pub fn shared_parts(&self, range: BlockRange) -> Vec<(BlockRange, bool)> {
        self.allocator.shared_parts(range)
    }

    /// Extents of the metadata area.
    pub fn metadata_extents(&self) -> Vec<BlockRange> {
        self.area.extents()
    }

    /// Blocks that the metadata area owns.
    pub fn metadata_blocks(&self) -> u64 {
        self.area.backed_blocks()
    }

    /// Opened read-only.
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// The previous mount had ended in order.
    pub fn was_clean(&self) -> bool {
        self.was_clean
    }

    /// A flush failed: changes are refused from now on, reading goes on.
    pub fn failed(&self) -> bool {
        self.area.flush_failed()
    }

    /// Reserves `count` context ids that no mount of this volume has had or will have.
    /// Durable when it returns.
    pub fn reserve_context_ids(&self, count: u64) -> Result<Range<u64>, StoreError> {
        if self.read_only {
            return Err(StoreError::ReadOnly { device: self.device.info().name });
        }
        let mut first = 0;
        let next = self.superblock.update(|superblock| {
            first = superblock.next_context_id;
            superblock.next_context_id = first.saturating_add(count);
        })?;
        Ok(first..next.next_context_id)
    }

    /// A record.
    pub fn get<T: Record>(&self, key: &Key<'_>) -> Result<Option<T>, StoreError> {
        match self.get_raw(key)? {
            Some(bytes) => Ok(Some(T::decode(&bytes)?)),
            None => Ok(None),
        }
    }

    /// The bytes of a record.
    pub fn get_raw(&self, key: &Key<'_>) -> Result<Option<Bytes>, StoreError> {
        self.kv.get(&key.encode())
    }

    /// An inode. One whose record bears another number is an error.
    pub fn inode(&self, ino: u64) -> Result<Option<Inode>, StoreError> {
        match self.get::<Inode>(&Key::Inode(ino))? {
            Some(inode) if inode.ino != ino => Err(Inode::malformed("it bears another number than its key").into()),
            found => Ok(found),
        }
    }

    /// The first `limit` records of a range of encoded keys, in order. Go on from the last key
    /// with a zero byte appended.
    pub fn scan(&self, range: Range<Vec<u8>>, limit: usize) -> Result<Vec<(Vec<u8>, Bytes)>, StoreError> {
        self.kv.scan(range, limit)
    }

    /// Visits all records of a range in order, in several scans.
    pub fn for_each(
        &self,
        range: Range<Vec<u8>>,
        visit: impl FnMut(Key<'_>, &[u8]) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        for_each_record(&self.kv, range, visit)
    }

    /// A file's extents that start at or before `file_block` (only the last such) or after it,
    /// at most `limit`: the ones a read from there needs.
    pub fn extents_from(&self, ino: u64, file_block: u64, limit: usize) -> Result<Vec<(u64, Extent)>, StoreError> {
        let mut found = Vec::new();
        if let Some((key, value)) = self.kv.last_before(Key::extents_of(ino).start..Key::Extent(ino, file_block).encode())? {
            found.push(decode_extent(&key, &value)?);
        }
        let from = Key::Extent(ino, file_block).encode()..Key::extents_of(ino).end;
        for (key, value) in self.kv.scan(from, limit)? {
            found.push(decode_extent(&key, &value)?);
        }
        found.retain(|(start, extent)| start.saturating_add(extent.len_blocks) > file_block);
        found.truncate(limit);
        Ok(found)
    }

    /// Takes blocks for data. When only a commit stands between it and enough space, commits.
    pub fn allocate(&self, request: AllocRequest) -> Result<Allocation, StoreError> {
        match self.allocator.allocate(request) {
            Err(StoreError::NoSpace { .. }) => {
                if self.allocator.space().pending > 0 {
                    self.commit()?;
                }
                self.discarding.wait();
                self.allocator.allocate(request)
            }
            result => result,
        }
    }

    /// Makes an operation's changes visible, all or none. Data that the batch refers to must have
    /// been written already. Returns the commit it will be part of.
    pub fn apply(&self, batch: Batch) -> Result<CommitSeq, StoreError> {
        let Batch { mut ops, owners } = batch;
        let seq = self.allocator.settle(&owners, |records| {
            ops.extend(records);
            self.kv.apply(ops)
        })?;
        owners.claimed.into_iter().for_each(|allocation| drop(allocation.into_pieces()));
        Ok(seq)
    }

    /// Makes everything durable that was applied, and every data write that completed, before this
    /// call. Returns the commit's number: all batches with a number up to it are durable.
    pub fn commit(&self) -> Result<CommitSeq, StoreError> {
        let committed = self.kv.commit().or_else(|error| match error.errno() {
            libc::ENOSPC => {
                self.discarding.wait();
                self.kv.commit()
            }
            _ => Err(error),
        });
        let seq = match committed {
            Err(error) if error.errno() == libc::ENOSPC => self.commit_with_last_half()?,
            Err(error) => return Err(error),
            Ok(seq) => {
                self.metadata_full.store(false, Ordering::Release);
                seq
            }
        };
        match self.discarding.at_commit() {
            true => self.discard_committed(seq),
            false => self.allocator.release_committed(seq),
        }
        Ok(seq)
    }

    /// What was accepted must not be lost: the metadata takes what was kept back for it, and is full.
    fn commit_with_last_half(&self) -> Result<CommitSeq, StoreError> {
        self.metadata_full.store(true, Ordering::Release);
        self.allocator.open_last_half(true);
        let result = self.kv.commit();
        self.allocator.open_last_half(false);
        result
    }

    /// The last commit had to use what was kept back: refuse what adds metadata until something was removed.
    pub fn metadata_full(&self) -> bool {
        self.metadata_full.load(Ordering::Acquire)
    }

    /// Bytes of blocks that the next commit is sure to get.
    pub fn metadata_room_bytes(&self) -> u64 {
        self.allocator.metadata_room() * peerfs_blockdev::BLOCK_BYTES
    }

    /// Approximate memory of uncommitted changes, in bytes: commit when it grows too much.
    pub fn pending_bytes(&self) -> usize {
        self.kv.pending_bytes()
    }

    pub(super) fn allocator(&self) -> &Arc<Allocator> {
        &self.allocator
    }

    pub(super) fn kv(&self) -> &Kv {
        &self.kv
    }
}

fn decode_extent(key: &[u8], value: &[u8]) -> Result<(u64, Extent), StoreError> {
    match Key::decode(key)? {
        Key::Extent(_, file_block) => Ok((file_block, Extent::decode(value)?)),
        _ => Err(super::RecordError::BadKey(key.to_vec()).into()),
    }
}

fn recorded_space(kv: &Kv) -> Result<Recorded, StoreError> {
    let mut space = Recorded::default();
    for range in [Key::free_extents(), Key::shared_runs(), Key::quarantined()] {
        for_each_record(kv, range, |key, value| {
            match key {
                Key::Free(start) => space.free.push(BlockRange::new(start, BlockCount::decode(value)?.0)),
                Key::Quarantine(start) => space.quarantine.push(BlockRange::new(start, BlockCount::decode(value)?.0)),
                Key::Shared(start) => {
                    let run = SharedRun::decode(value)?;
                    space.shared.push((BlockRange::new(start, run.len_blocks), run.references));
                }
                _ => {}
            }
            Ok(())
        })?;
    }
    Ok(space)
}

/// Visits all records of a range in order.
pub(super) fn for_each_record(
    kv: &Kv,
    range: Range<Vec<u8>>,
    mut visit: impl FnMut(Key<'_>, &[u8]) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let mut from = range.start;
    loop {
        let records = kv.scan(from..range.end.clone(), SCAN_RECORDS)?;
        for (key, value) in &records {
            visit(Key::decode(key)?, value)?;
        }
        match records.into_iter().next_back() {
            Some((last, _)) => {
                from = last;
                from.push(0);
            }
            None => return Ok(()),
        }
    }
}

/// Identifies this machine: a hash of /etc/machine-id, 0 where there is none.
pub fn host_id() -> u64 {
    let Ok(id) = std::fs::read("/etc/machine-id") else { return 0 };
    // FNV-1a, 64 bits. It goes to disk, so the function must never change; std's hashers may.
    id.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}
