//! Inode numbers. They are taken from the recorded counter a thousand at a time, so
//! that concurrent operations need no order among themselves; a crash skips the rest.

use std::sync::Mutex;

use super::Core;
use super::meta::Txn;
use crate::error::{FsError, Result};
use crate::store::{Counter, Key, ROOT_INO, counter};
use crate::sync::lock;
use crate::types::Ino;

const TAKEN_AT_ONCE: u64 = 1024;

/// Numbers taken from the counter and not used yet.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    taken: Mutex<std::ops::Range<Ino>>,
}

impl Numbers {
    /// A number that no inode ever had.
    pub(super) fn next_ino(&self, core: &Core) -> Result<Ino> {
        let mut taken = lock(&self.taken);
        if let Some(ino) = taken.next() {
            return Ok(ino);
        }
        let first = recorded(core)?;
        let end = first
            .checked_add(TAKEN_AT_ONCE)
            .filter(|end| *end <= i64::MAX as u64)
            .ok_or_else(|| FsError::with_context(libc::ENOSPC, "inode numbers are used up"))?;
        let range = Key::Inode(first).encode()..Key::Inode(end).encode();
        if !core.scan(range, 1)?.is_empty() {
            return Err(FsError::with_context(
                libc::EIO,
                format!("the inode counter says {first}, but there is an inode above it; run `peerfs fsck`"),
            ));
        }
        let mut txn = Txn::new();
        txn.put(Key::Counter(counter::NEXT_INO), &Counter(end));
        core.apply(txn)?;
        *taken = first + 1..end;
        Ok(first)
    }

    /// How many numbers were given out, about.
    pub(super) fn used(&self, core: &Core) -> u64 {
        let left = lock(&self.taken).clone().count() as u64;
        recorded(core).map_or(0, |next| next.saturating_sub(left + 1))
    }
}

fn recorded(core: &Core) -> Result<Ino> {
    let counter: Option<Counter> = core.get(Key::Counter(counter::NEXT_INO))?;
    Ok(counter.map_or(ROOT_INO + 1, |counter| counter.0.max(ROOT_INO + 1)))
}
