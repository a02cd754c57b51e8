//! How files and free space lie on an unmounted volume.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result};
use peerfs_blockdev::{BLOCK_BYTES, DeviceSpec, OpenMode};
use peerfs_fs::store::{BlockCount, Extent, HUGE_BLOCKS, Key, OpenOptions, Record, Volume};

use crate::ScratchMount;

const LOCK_WAIT: Duration = Duration::from_secs(10);

/// Extents of files and runs of free space. Extents count as one where the next block of the file is the next of the device.
#[derive(Debug, Clone, Default)]
pub struct Layout {
    /// Extents of each file that has blocks, fewest first.
    extents: Vec<u64>,
    blocks: u64,
    /// Device blocks of files, each once.
    owned: BTreeSet<u64>,
    free_runs: u64,
    free_blocks: u64,
    largest_free: u64,
    huge_free: u64,
}

impl Layout {
    /// Reads it.
    ///
    /// # Errors
    /// The volume cannot be read.
    pub fn of(scratch: &ScratchMount, inodes: &[u64]) -> Result<Layout> {
        let device = DeviceSpec::from_str(&scratch.device())?.open(Some(0), OpenMode::ReadOnly, LOCK_WAIT)?.device;
        let volume = Volume::open(device, &OpenOptions { read_only: true, ..OpenOptions::default() })?;
        let mut layout = Layout::default();
        for ino in inodes {
            layout.add_file(&volume, *ino).with_context(|| format!("inode {ino}"))?;
        }
        layout.extents.sort_unstable();
        volume.for_each(Key::free_extents(), |_, value| {
            let count = BlockCount::decode(value)?.0;
            layout.free_runs += 1;
            layout.free_blocks += count;
            layout.largest_free = layout.largest_free.max(count);
            layout.huge_free += if count >= HUGE_BLOCKS { count } else { 0 };
            Ok(())
        })?;
        Ok(layout)
    }

    fn add_file(&mut self, volume: &Volume, ino: u64) -> Result<()> {
        let (mut extents, mut next) = (0, None);
        volume.for_each(Key::extents_of(ino), |key, value| {
            if let Key::Extent(_, file_block) = key {
                let extent = Extent::decode(value)?;
                extents += u64::from(next != Some((file_block, extent.device_block)));
                next = Some((file_block + extent.len_blocks, extent.device_block + extent.len_blocks));
                self.blocks += extent.len_blocks;
                self.owned.extend(extent.device_block..extent.device_block + extent.len_blocks);
            }
            Ok(())
        })?;
        if extents > 0 {
            self.extents.push(extents);
        }
        Ok(())
    }

    /// Blocks that files have; one that several have counts once.
    pub fn owned_blocks(&self) -> u64 {
        self.owned.len() as u64
    }

    fn mean_extents(&self) -> f64 {
        self.extents.iter().sum::<u64>() as f64 / self.extents.len().max(1) as f64
    }

    fn percentile(&self, percent: usize) -> u64 {
        self.extents.get((self.extents.len() * percent / 100).min(self.extents.len().saturating_sub(1))).copied().unwrap_or(0)
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |blocks: u64| blocks as f64 * BLOCK_BYTES as f64 / 1048576.0;
        write!(
            f,
            "extents per file {:.2}, p50 {}, p99 {}, max {}; {:.2} per MiB; free {:.0} MiB in {} runs, the largest {:.1} MiB, {:.0} % in runs of 2 MiB or more",
            self.mean_extents(),
            self.percentile(50),
            self.percentile(99),
            self.percentile(100),
            self.extents.iter().sum::<u64>() as f64 / mib(self.blocks.max(1)),
            mib(self.free_blocks),
            self.free_runs,
            mib(self.largest_free),
            100.0 * self.huge_free as f64 / self.free_blocks.max(1) as f64,
        )
    }
}
