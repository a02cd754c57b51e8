//! Who keeps windows beyond the death of this process.
//!
//! A client's mapping of a window outlives the server. Somebody must then end
//! it, before another server takes the volume over: the keeper of custody.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;

use crate::sync::{Mutex, lock};

/// Keeps window and sequence descriptors; when this process dies it marks the
/// sequence pages and truncates the windows.
pub trait Custody: Send + Sync {
    /// Returns when the keeper has the window. No grant is given before that. Ids are the caller's, unique among
    /// windows.
    fn hold(&self, id: u64, window: OwnedFd) -> io::Result<()>;
    /// The window was cut; the keeper may forget it.
    fn release(&self, id: u64);
    /// Returns when the keeper has the sequence page. Ids are the caller's, unique among sequence pages.
    fn hold_sequence(&self, id: u64, page: OwnedFd) -> io::Result<()>;
    /// The session has ended.
    fn release_sequence(&self, id: u64);
}

/// Custody inside this process: for tests, and where nothing is handed to other processes.
#[derive(Debug, Default)]
pub struct MemoryCustody {
    windows: Mutex<HashMap<u64, OwnedFd>>,
    pages: Mutex<HashMap<u64, OwnedFd>>,
}

impl MemoryCustody {
    /// Windows held now.
    pub fn windows(&self) -> usize {
        lock(&self.windows).len()
    }

    /// Sequence pages held now.
    pub fn pages(&self) -> usize {
        lock(&self.pages).len()
    }
}

impl Custody for MemoryCustody {
    fn hold(&self, id: u64, window: OwnedFd) -> io::Result<()> {
        lock(&self.windows).insert(id, window);
        Ok(())
    }

    fn release(&self, id: u64) {
        lock(&self.windows).remove(&id);
    }

    fn hold_sequence(&self, id: u64, page: OwnedFd) -> io::Result<()> {
        lock(&self.pages).insert(id, page);
        Ok(())
    }

    fn release_sequence(&self, id: u64) {
        lock(&self.pages).remove(&id);
    }
}
