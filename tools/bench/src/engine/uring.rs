//! io_uring, with as many transfers under way as the job has depth.

use std::fs::File;
use std::io;
use std::sync::Arc;

use peerfs_sys::{Direction as Way, IoQueue};

use super::psync;
use super::{Ended, Engine};
use crate::Error;
use crate::pattern::Step;
use crate::values::Direction;

/// A ring of the clone's own.
pub struct Uring {
    queue: IoQueue,
    file: Arc<File>,
    name: String,
    /// Kept for its room.
    ended: Vec<peerfs_sys::Ended>,
}

impl Uring {
    pub fn new(file: File, name: String, depth: usize, buffer_bytes: usize) -> Result<Uring, Error> {
        let file = Arc::new(file);
        let queue = IoQueue::new(Arc::clone(&file), depth as u32, buffer_bytes);
        let queue = queue.map_err(|source| Error::system("set up io_uring for", &name, source))?;
        Ok(Uring { queue, file, name, ended: Vec::new() })
    }
}

impl Engine for Uring {
    fn is_asynchronous(&self) -> bool {
        true
    }

    fn buffer(&mut self, slot: usize) -> &mut [u8] {
        self.queue.buffer(slot).expect("the worker uses idle slots only")
    }

    fn start(&mut self, slot: usize, step: &Step) -> Result<(), Error> {
        let way = match step.direction {
            Direction::Read => Way::Read,
            Direction::Write => Way::Write,
        };
        let started = self.queue.submit(way, slot, step.offset, step.length as usize);
        started.map_err(|source| Error::system(step.direction.name(), &self.name, source))
    }

    fn wait(&mut self, ended: &mut Vec<Ended>) -> Result<(), Error> {
        let fail = |source: io::Error| Error::system("move bytes of", &self.name, source);
        self.queue.wait(&mut self.ended).map_err(fail)?;
        ended.extend(
            self.ended.drain(..).map(|(slot, moved)| Ended { slot, moved: moved.map(|count| count as u64).map_err(fail) }),
        );
        Ok(())
    }

    fn sync(&mut self, data_only: bool) -> Result<(), Error> {
        psync::sync(&self.file, &self.name, data_only)
    }
}
