//! What moves the bytes of a clone.

mod blocking;
mod mmap;
mod peerfs;
mod psync;
mod uring;

use std::collections::BTreeMap;

use crate::pattern::{Region, Step};
use crate::settings::EngineKind;
use crate::{Error, Job, files};

use blocking::OneByOne;

/// A transfer that has ended.
#[derive(Debug)]
pub struct Ended {
    /// The slot whose buffer it used.
    pub slot: usize,
    /// Bytes moved.
    pub moved: Result<u64, Error>,
}

/// One clone's way to its file, with a buffer for each transfer that may be under way.
pub trait Engine: Send {
    /// Do transfers go on after they were started?
    fn is_asynchronous(&self) -> bool;

    /// The buffer of a slot that no transfer uses.
    fn buffer(&mut self, slot: usize) -> &mut [u8];

    /// Starts a transfer with the buffer of a slot that no other uses.
    fn start(&mut self, slot: usize, step: &Step) -> Result<(), Error>;

    /// Waits for one transfer at least, if any is under way, and adds all that have ended.
    fn wait(&mut self, ended: &mut Vec<Ended>) -> Result<(), Error>;

    /// Makes what was written durable; with `data_only` as fdatasync(2) does. Nothing is under way.
    fn sync(&mut self, data_only: bool) -> Result<(), Error>;

    /// Which ways the bytes went, where there are several.
    fn paths(&self) -> Option<PathBytes> {
        None
    }
}

/// Bytes by path and, where they fell back, by reason.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PathBytes {
    /// Through windows of main memory.
    pub direct_window: u64,
    /// Through a device's BAR.
    pub direct_bar: u64,
    /// Through the filesystem.
    pub fallback: u64,
    /// `fallback`, by the name of the reason.
    pub reasons: BTreeMap<&'static str, u64>,
    /// Times that a range was mapped again after it was revoked.
    pub remaps: u64,
}

impl PathBytes {
    /// What came after an earlier look.
    pub fn since(mut self, before: &PathBytes) -> PathBytes {
        self.direct_window = self.direct_window.saturating_sub(before.direct_window);
        self.direct_bar = self.direct_bar.saturating_sub(before.direct_bar);
        self.fallback = self.fallback.saturating_sub(before.fallback);
        self.remaps = self.remaps.saturating_sub(before.remaps);
        for (reason, bytes) in &mut self.reasons {
            *bytes = bytes.saturating_sub(before.reasons.get(reason).copied().unwrap_or_default());
        }
        self.reasons.retain(|_, bytes| *bytes > 0);
        self
    }

    /// Adds another clone's.
    pub fn add(&mut self, other: &PathBytes) {
        self.direct_window += other.direct_window;
        self.direct_bar += other.direct_bar;
        self.fallback += other.fallback;
        self.remaps += other.remaps;
        for (reason, bytes) in &other.reasons {
            *self.reasons.entry(reason).or_default() += bytes;
        }
    }
}

/// The engine of a clone.
///
/// # Errors
/// What opening or mapping the file answers.
pub fn open(job: &Job, clone: u32, region: Region) -> Result<Box<dyn Engine>, Error> {
    let buffer_bytes = job.largest_block() as usize;
    let name = job.file(clone).display().to_string();
    Ok(match job.settings.engine {
        EngineKind::Psync => Box::new(OneByOne::new(psync::Psync::new(files::open(job, clone)?, name), buffer_bytes)),
        EngineKind::Uring => Box::new(uring::Uring::new(files::open(job, clone)?, name, job.depth(), buffer_bytes)?),
        EngineKind::Mmap => Box::new(OneByOne::new(mmap::Mmap::new(&files::open(job, clone)?, name, job, region)?, buffer_bytes)),
        EngineKind::Peerfs => Box::new(OneByOne::new(peerfs::Peerfs::new(job, clone, region)?, buffer_bytes)),
    })
}
