//! The volatile write cache: every version of every sector since the last flush.

use std::collections::BTreeMap;

use crate::{BLOCK_BYTES, BlockDevice, BlockDeviceExt, DeviceError};

use super::rules::Random;

const SECTOR_BYTES: usize = 512;

type Sector = [u8; SECTOR_BYTES];

#[derive(Default)]
pub(super) struct WriteCache {
    /// By sector number; oldest version first.
    versions: BTreeMap<u64, Vec<Sector>>,
}

impl WriteCache {
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        let first = offset / SECTOR_BYTES as u64;
        for (number, sector) in (first..).zip(data.as_chunks::<SECTOR_BYTES>().0) {
            let versions = self.versions.entry(number).or_default();
            versions.push(*sector);
        }
    }

    /// Puts the newest versions over what was read from the device.
    pub(super) fn patch(&self, offset: u64, buf: &mut [u8]) {
        for (number, versions) in self.versions.range(sectors_of(offset, buf.len() as u64)) {
            let at = (number * SECTOR_BYTES as u64 - offset) as usize;
            if let Some(newest) = versions.last() {
                buf[at..at + SECTOR_BYTES].copy_from_slice(&newest[..]);
            }
        }
    }

    pub(super) fn forget(&mut self, offset: u64, length: u64) {
        let gone = sectors_of(offset, length);
        self.versions.retain(|number, _| !gone.contains(number));
    }

    pub(super) fn sectors(&self) -> usize {
        self.versions.len()
    }

    /// Writes the newest version of everything. On an error the cache keeps all.
    pub(super) fn persist(&mut self, device: &dyn BlockDevice) -> Result<(), DeviceError> {
        store(device, &self.versions, |versions| versions.len())?;
        self.versions.clear();
        Ok(())
    }

    /// Writes, of each sector, a version chosen by the seed, or none.
    pub(super) fn settle(&mut self, device: &dyn BlockDevice, seed: u64) -> Result<(), DeviceError> {
        let mut random = Random::new(seed);
        store(device, &self.versions, |versions| random.below(versions.len() as u64 + 1) as usize)?;
        self.versions.clear();
        Ok(())
    }
}

fn sectors_of(offset: u64, length: u64) -> std::ops::Range<u64> {
    let sector = SECTOR_BYTES as u64;
    offset / sector..(offset + length) / sector
}

/// Writes version number `choose` (1 is the oldest, 0 none) of each sector, block by block.
fn store(
    device: &dyn BlockDevice,
    versions: &BTreeMap<u64, Vec<Sector>>,
    mut choose: impl FnMut(&[Sector]) -> usize,
) -> Result<(), DeviceError> {
    let per_block = BLOCK_BYTES / SECTOR_BYTES as u64;
    let mut blocks: BTreeMap<u64, Vec<(usize, &Sector)>> = BTreeMap::new();
    for (number, versions) in versions {
        if let Some(chosen) = choose(versions).checked_sub(1) {
            let at = (number % per_block) as usize * SECTOR_BYTES;
            let block = blocks.entry(number / per_block * BLOCK_BYTES).or_default();
            block.push((at, &versions[chosen]));
        }
    }
    let mut content = vec![0; BLOCK_BYTES as usize];
    for (offset, sectors) in blocks {
        if sectors.len() < per_block as usize {
            device.read_at(offset, &mut content)?;
        }
        for (at, sector) in sectors {
            content[at..at + SECTOR_BYTES].copy_from_slice(sector);
        }
        device.write_at(offset, &content)?;
    }
    Ok(())
}
