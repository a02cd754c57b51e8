//! mkfs, and the summary of a volume without mounting it.

use std::io::Read;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use peerfs_blockdev::{BLOCK_BYTES, BlockDevice, existing_content};

use super::backend::Backend;
use super::chain::Chain;
use super::key::Key;
use super::kv::{Kv, KvOptions};
use super::meta_area::MetaArea;
use super::records::{BlockCount, Counter, FileKind, Inode, ROOT_INO, Record, Timestamp, counter};
use super::super_store::SuperblockStore;
use super::superblock::{LABEL_BYTES, SUPERBLOCK_BLOCKS, Superblock};
use super::{BlockRange, StoreError, Volume};

/// Smallest volume in bytes.
pub const MIN_DEVICE_BYTES: u64 = 8 << 20;
/// Start of the device that mkfs clears, so that nothing takes it for what it was, in bytes.
const CLEARED_BYTES: u64 = 128 << 10;
const MKFS_CACHE_BYTES: usize = 4 << 20;

/// What mkfs is to make.
#[derive(Debug, Clone, Default)]
pub struct FormatOptions {
    /// Name of the volume, at most [`LABEL_BYTES`] bytes.
    pub label: String,
    /// Size in bytes, rounded down to blocks; the whole device if `None`.
    pub size_bytes: Option<u64>,
    /// Overwrite what is there.
    pub force: bool,
}

/// What the superblock tells about a volume.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Summary {
    /// Identity, as 32 hexadecimal digits in the usual groups.
    pub uuid: String,
    /// Name.
    pub label: String,
    /// Format, for example `peerfs-1`.
    pub format: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Bytes of the device that the metadata area owns.
    pub metadata_bytes: u64,
    /// The last mount ended in order.
    pub clean: bool,
    /// The last mount was on this machine.
    pub same_host: bool,
    /// Read-write mounts so far.
    pub mount_count: u64,
}

/// Reads the summary of a volume that need not be mounted.
pub fn probe(device: &Arc<dyn BlockDevice>) -> Result<Summary, StoreError> {
    let current = SuperblockStore::load(device.clone())?.current();
    if current.formatting {
        return Err(StoreError::Unfinished { device: device.info().name });
    }
    Ok(summarise(&current))
}

pub(super) fn summarise(superblock: &Superblock) -> Summary {
    Summary {
        uuid: uuid_text(&superblock.uuid),
        label: superblock.label.clone(),
        format: super::FORMAT_NAME.to_owned(),
        size_bytes: superblock.device_blocks * BLOCK_BYTES,
        metadata_bytes: superblock.chain.backed_blocks() * BLOCK_BYTES,
        clean: superblock.clean,
        same_host: superblock.host_id == super::host_id(),
        mount_count: superblock.mount_count,
    }
}

fn uuid_text(uuid: &[u8; 16]) -> String {
    let mut text = String::with_capacity(36);
    for (index, byte) in uuid.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

impl Volume {
    /// Makes an empty volume. Refuses when the device holds something known, unless forced.
    pub fn format(device: Arc<dyn BlockDevice>, options: &FormatOptions) -> Result<(), StoreError> {
        let name = device.info().name;
        let device_bytes = device.info().size_bytes;
        let size = options.size_bytes.unwrap_or(device_bytes);
        if options.label.len() > LABEL_BYTES {
            return Err(StoreError::LabelTooLong { length: options.label.len(), limit: LABEL_BYTES });
        }
        if size > device_bytes {
            return Err(StoreError::TooSmall { device: name, actual_bytes: device_bytes, needed_bytes: size });
        }
        if size < MIN_DEVICE_BYTES {
            return Err(StoreError::TooSmall { device: name, actual_bytes: size, needed_bytes: MIN_DEVICE_BYTES });
        }
        if !options.force
            && let Some(what) = existing_content(device.as_ref())?
        {
            return Err(StoreError::InUse { device: name, what: what.to_string() });
        }
        device.write_zeroes(0, CLEARED_BYTES)?;
        device.flush()?;
        let first = first_superblock(size / BLOCK_BYTES, &options.label)?;
        let superblock = Arc::new(SuperblockStore::create(device.clone(), first)?);
        fill(device, &superblock)?;
        superblock.update(|superblock| {
            superblock.formatting = false;
            superblock.clean = true;
        })?;
        Ok(())
    }
}

fn first_superblock(device_blocks: u64, label: &str) -> Result<Superblock, StoreError> {
    // The area ends on a 2 MiB boundary, where data starts aligned. An empty database needs 1.1 MiB.
    let area_end = if device_blocks >= 16384 { 1024 } else { 512 };
    Ok(Superblock {
        generation: 1,
        uuid: random_uuid()?,
        label: label.to_owned(),
        device_blocks,
        chain: Chain::new(vec![BlockRange::new(SUPERBLOCK_BLOCKS, area_end - SUPERBLOCK_BLOCKS)]),
        meta_length: 0,
        clean: false,
        formatting: true,
        host_id: super::host_id(),
        next_context_id: 1,
        mount_count: 0,
    })
}

/// A random (version 4) UUID, RFC 9562 section 5.4.
fn random_uuid() -> Result<[u8; 16], StoreError> {
    let mut uuid = [0; 16];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut uuid))
        .map_err(|error| peerfs_blockdev::DeviceError::Unusable { device: "/dev/urandom".into(), reason: error.to_string() })?;
    uuid[6] = uuid[6] & 0x0f | 0x40;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    Ok(uuid)
}

/// Writes the first records: the root directory, the counters, the free space.
fn fill(device: Arc<dyn BlockDevice>, superblock: &Arc<SuperblockStore>) -> Result<(), StoreError> {
    let name = device.info().name;
    let current = superblock.current();
    for range in current.chain.extents() {
        device.write_zeroes(range.byte_offset(), range.byte_length())?;
    }
    let area = MetaArea::new(device, superblock.clone());
    let options = KvOptions { cache_bytes: MKFS_CACHE_BYTES, check_integrity: false };
    let kv = Kv::open(Backend::Live(area), name, options)?;
    let root = root_inode();
    let first_free = current.chain.extents().last().map_or(SUPERBLOCK_BLOCKS, |last| last.end());
    let free = BlockCount(current.device_blocks - first_free);
    kv.apply(vec![
        (Key::Inode(ROOT_INO).encode(), Some(root.encode().into())),
        (Key::Free(first_free).encode(), Some(free.encode().into())),
        (Key::Counter(counter::NEXT_INO).encode(), Some(Counter(ROOT_INO + 1).encode().into())),
        (Key::Counter(counter::NEXT_GENERATION).encode(), Some(Counter(2).encode().into())),
    ])?;
    kv.commit()?;
    kv.close()
}

fn root_inode() -> Inode {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = Timestamp { sec: since.as_secs() as i64, nsec: since.subsec_nanos() };
    Inode {
        ino: ROOT_INO,
        generation: 1,
        mode: FileKind::Directory.mode_bits() | 0o755,
        // Whoever makes a volume can use it: an ordinary user could not change the owner later.
        uid: nix::unistd::geteuid().as_raw(),
        gid: nix::unistd::getegid().as_raw(),
        nlink: 2,
        size: 0,
        blocks: 0,
        atime: now,
        mtime: now,
        ctime: now,
        crtime: now,
        rdev: 0,
        flags: 0,
        next_cookie: FIRST_COOKIE,
        parent: ROOT_INO,
    }
}

/// Cookies below this are for `.` and `..`.
const FIRST_COOKIE: u64 = 3;
