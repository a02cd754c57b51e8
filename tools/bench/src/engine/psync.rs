//! pread(2) and pwrite(2).

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::blocking::Blocking;
use crate::Error;
use crate::pattern::Step;
use crate::values::Direction;

/// A file and its name.
pub struct Psync {
    file: File,
    name: String,
}

impl Psync {
    pub fn new(file: File, name: String) -> Psync {
        Psync { file, name }
    }
}

impl Blocking for Psync {
    fn transfer(&mut self, step: &Step, buffer: &mut [u8]) -> Result<u64, Error> {
        loop {
            let moved = match step.direction {
                Direction::Read => self.file.read_at(buffer, step.offset),
                Direction::Write => self.file.write_at(buffer, step.offset),
            };
            match moved {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::system(step.direction.name(), &self.name, error)),
                Ok(count) => return Ok(count as u64),
            }
        }
    }

    fn sync(&mut self, data_only: bool) -> Result<(), Error> {
        sync(&self.file, &self.name, data_only)
    }
}

/// fsync(2) or fdatasync(2).
pub fn sync(file: &File, name: &str, data_only: bool) -> Result<(), Error> {
    let outcome = if data_only { file.sync_data() } else { file.sync_all() };
    outcome.map_err(|source| Error::system("sync", name, source))
}
