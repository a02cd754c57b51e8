//! Loads and stores through a shared mapping of the file.

use std::fs::File;
use std::io;

use peerfs_sys::{FileView, Sharing};

use super::blocking::Blocking;
use crate::pattern::{Region, Step};
use crate::values::Direction;
use crate::{Error, Job};

/// A mapping of the file up to the end of the job's part.
pub struct Mmap {
    view: FileView,
    name: String,
}

impl Mmap {
    pub fn new(file: &File, name: String, job: &Job, region: Region) -> Result<Mmap, Error> {
        let fail = |source| Error::system("map", &name, source);
        let length = usize::try_from(region.start + region.length).map_err(|_| fail(io::ErrorKind::OutOfMemory.into()))?;
        let view = FileView::map(file, length, Sharing::Shared, job.settings.access.writes).map_err(fail)?;
        Ok(Mmap { view, name })
    }
}

impl Blocking for Mmap {
    fn transfer(&mut self, step: &Step, buffer: &mut [u8]) -> Result<u64, Error> {
        let offset = step.offset as usize;
        let copied = match step.direction {
            Direction::Read => self.view.read(offset, buffer),
            Direction::Write => self.view.write(offset, buffer),
        };
        let fault = |_| Error::system(step.direction.name(), &self.name, io::Error::other("the file was truncated"));
        copied.map(|()| step.length).map_err(fault)
    }

    /// msync(2) makes data and metadata durable: there is no half of it.
    fn sync(&mut self, _data_only: bool) -> Result<(), Error> {
        self.view.sync().map_err(|source| Error::system("sync", &self.name, source))
    }
}
