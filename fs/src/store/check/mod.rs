//! fsck: whether everything on a volume agrees with everything else.

mod problem;
mod space;
mod tree;

use std::sync::Arc;

use peerfs_blockdev::BlockDevice;

use super::backend::Backend;
use super::key::{Key, RecordError};
use super::kv::{Kv, KvOptions};
use super::meta_area::MetaArea;
use super::records::{
    BlockCount, Counter, DirentByCookie, DirentByName, Extent, Inode, Record, SYMLINK_BYTES, SharedRun, XATTR_BYTES,
};
use super::super_store::SuperblockStore;
use super::{BlockRange, StoreError, Volume};

pub use problem::{Problem, Report};
use space::Space;
use tree::Tree;

const CHECK_CACHE_BYTES: usize = 256 << 20;
/// Above every key.
const KEY_END: [u8; 16] = [0xff; 16];
const SCAN_RECORDS: usize = 4096;

/// Checks an unmounted volume without writing to it. An error means that it cannot even be read.
///
/// Damage to the database may abort the process: check a foreign image in a child.
pub fn check(device: Arc<dyn BlockDevice>) -> Result<Report, StoreError> {
    let (kv, superblock) = open_shadow(device)?;
    let current = superblock.current();
    check_records(&kv, &current.chain.extents(), current.device_blocks)
}

/// Checks an open volume, uncommitted changes included, while nothing changes it.
pub fn check_volume(volume: &Volume) -> Result<Report, StoreError> {
    check_records(volume.kv(), &volume.metadata_extents(), volume.total_blocks())
}

/// Reads and decodes everything, verifying the database's checksums, without writing. Meant for a
/// child process whose death means "corrupt metadata".
pub fn open_probe(device: Arc<dyn BlockDevice>) -> Result<(), StoreError> {
    let (kv, _) = open_shadow(device)?;
    for_each_raw(&kv, |key, value| {
        let key = Key::decode(key)?;
        Ok(decode_value(&key, value)?)
    })
}

fn open_shadow(device: Arc<dyn BlockDevice>) -> Result<(Kv, Arc<SuperblockStore>), StoreError> {
    let name = device.info().name;
    let superblock = Arc::new(SuperblockStore::load(device.clone())?);
    if superblock.current().formatting {
        return Err(StoreError::Unfinished { device: name });
    }
    let area = MetaArea::new(device, superblock.clone());
    let options = KvOptions { cache_bytes: CHECK_CACHE_BYTES, check_integrity: true };
    Ok((Kv::open(Backend::shadow(area), name, options)?, superblock))
}

fn for_each_raw(kv: &Kv, mut visit: impl FnMut(&[u8], &[u8]) -> Result<(), StoreError>) -> Result<(), StoreError> {
    let mut from = Vec::new();
    loop {
        let records = kv.scan(from..KEY_END.to_vec(), SCAN_RECORDS)?;
        for (key, value) in &records {
            visit(key, value)?;
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

fn decode_value(key: &Key<'_>, value: &[u8]) -> Result<(), RecordError> {
    match key {
        Key::Inode(_) => Inode::decode(value).map(drop),
        Key::DirentName(..) => DirentByName::decode(value).map(drop),
        Key::DirentCookie(..) => DirentByCookie::decode(value).map(drop),
        Key::Extent(..) => Extent::decode(value).map(drop),
        Key::Xattr(..) => at_most(value, XATTR_BYTES, "attribute"),
        Key::Symlink(_) => at_most(value, SYMLINK_BYTES, "symbolic link"),
        Key::Orphan(_) => at_most(value, 0, "orphan"),
        Key::Free(_) | Key::Quarantine(_) => BlockCount::decode(value).map(drop),
        Key::Counter(_) => Counter::decode(value).map(drop),
        Key::Shared(_) => SharedRun::decode(value).map(drop),
    }
}

fn at_most(value: &[u8], limit: usize, what: &'static str) -> Result<(), RecordError> {
    if value.len() > limit {
        return Err(RecordError::BadValue { what, reason: "too long" });
    }
    Ok(())
}

fn check_records(kv: &Kv, chain: &[BlockRange], device_blocks: u64) -> Result<Report, StoreError> {
    let mut report = Report::default();
    let mut tree = Tree::default();
    let mut space = Space::new(chain, device_blocks);
    for_each_raw(kv, |raw_key, value| {
        let outcome = Key::decode(raw_key).and_then(|key| {
            decode_value(&key, value)?;
            tree.visit(&key, value, &mut report)?;
            space.visit(&key, value)
        });
        if let Err(error) = outcome {
            report.add(Problem::BadRecord { reason: error.to_string() });
        }
        Ok(())
    })?;
    tree.finish(&mut report);
    space.finish(&mut report);
    Ok(report)
}
