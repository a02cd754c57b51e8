//! Free space, to the block: what statfs(2) says is used is what files have, the metadata area and the superblocks.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::statvfs::statvfs;
use peerfs_blockdev::BLOCK_BYTES;
use peerfs_fs::store::SUPERBLOCK_BLOCKS;

use crate::ScratchMount;

/// How long the kernel may take to tell the server of the last close.
const PATIENCE: Duration = Duration::from_secs(20);
/// Unit of `st_blocks`, in bytes.
const STAT_BLOCK: u64 = 512;

/// Blocks of a mount where nothing happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Account {
    /// All that are not free, less the metadata area's and the superblocks'.
    pub data: u64,
    /// The sum over all files.
    pub of_files: u64,
}

impl Account {
    /// Asks the mount.
    ///
    /// # Errors
    /// It does not answer.
    pub fn of(scratch: &ScratchMount) -> Result<Account> {
        let space = statvfs(&scratch.path())?;
        let metadata = scratch.info()?["volume"]["metadata_bytes"].as_u64().context("info.json has metadata_bytes")?;
        let used = space.blocks() - space.blocks_free();
        let mut of_files = 0;
        for entry in fs::read_dir(scratch.path())? {
            of_files += entry?.metadata()?.blocks() * STAT_BLOCK / BLOCK_BYTES;
        }
        let data = used.checked_sub(metadata / BLOCK_BYTES + SUPERBLOCK_BLOCKS).context("less is used than the metadata has")?;
        Ok(Account { data, of_files })
    }

    /// Until the blocks are as they should be: exactly the files', or, where files share blocks, no more.
    ///
    /// # Errors
    /// They do not become so.
    pub fn settled(scratch: &ScratchMount, shared: bool) -> Result<Account> {
        let start = Instant::now();
        loop {
            let account = Account::of(scratch)?;
            let exact = account.data == account.of_files;
            if exact || (shared && account.data < account.of_files) {
                return Ok(account);
            }
            if start.elapsed() > PATIENCE {
                bail!("{} blocks of data are in use, and files have {}", account.data, account.of_files);
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}
