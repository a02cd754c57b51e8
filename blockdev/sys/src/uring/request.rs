//! One transfer: what it needs while the kernel works on it, and its outcome.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread::Thread;

use io_uring::{opcode, squeue, types};

use crate::buffer::AlignedBuf;

use super::{Engine, RegisteredWindow};

/// Most bytes the kernel moves in one request (MAX_RW_COUNT, rounded down to 1 GiB).
const MAX_STEP_BYTES: u64 = 1 << 30;

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// File to memory.
    Read,
    /// Memory to file.
    Write,
}

/// How a transfer ended. Short without an error means the end of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// Bytes moved.
    pub bytes: u64,
    /// Error number (errno.h), if it stopped at an error.
    pub errno: Option<i32>,
}

impl Outcome {
    /// The error number, or EIO for a transfer that ended before `length` bytes.
    pub fn check(&self, length: u64) -> Result<(), i32> {
        match self.errno {
            Some(errno) => Err(errno),
            None if self.bytes < length => Err(libc::EIO),
            None => Ok(()),
        }
    }
}

/// Owners of the memory that a request uses. A copy has both: the window as memory, and the
/// pool buffer reached as file contents.
pub(super) struct Keep {
    pub(super) window: Option<Arc<RegisteredWindow>>,
    pub(super) buffer: Option<AlignedBuf>,
}

/// A request under way.
pub(super) struct Request {
    direction: Direction,
    file: Arc<File>,
    offset: u64,
    address: u64,
    length: u64,
    slot: Option<u16>,
    keep: Keep,
    moved: u64,
    pub(super) outcome: Option<Outcome>,
    pub(super) waiter: Option<Thread>,
    /// Nobody will ask for the outcome.
    pub(super) forgotten: bool,
}

impl Request {
    pub(super) fn new(
        direction: Direction,
        file: Arc<File>,
        offset: u64,
        (address, length, slot): (u64, usize, Option<u16>),
        keep: Keep,
    ) -> Self {
        Request {
            direction,
            file,
            offset,
            address,
            length: length as u64,
            slot,
            keep,
            moved: 0,
            outcome: None,
            waiter: None,
            forgotten: false,
        }
    }

    pub(super) fn is_registered(&self) -> bool {
        self.slot.is_some()
    }

    /// The submission for what is left to move.
    pub(super) fn entry(&self, key: usize) -> squeue::Entry {
        let fd = types::Fd(self.file.as_raw_fd());
        let length = (self.length - self.moved).min(MAX_STEP_BYTES) as u32;
        let address = (self.address + self.moved) as *mut u8;
        let offset = self.offset + self.moved;
        let entry = match (self.direction, self.slot) {
            (Direction::Read, Some(slot)) => opcode::ReadFixed::new(fd, address, length, slot).offset(offset).build(),
            (Direction::Read, None) => opcode::Read::new(fd, address, length).offset(offset).build(),
            (Direction::Write, Some(slot)) => opcode::WriteFixed::new(fd, address, length, slot).offset(offset).build(),
            (Direction::Write, None) => opcode::Write::new(fd, address, length).offset(offset).build(),
        };
        entry.user_data(key as u64)
    }

    /// Takes in a completion. True: there is more to do, submit [`Request::entry`] again.
    pub(super) fn advance(&mut self, result: i32) -> bool {
        let errno = match result {
            // ECANCELED: the thread that submitted it exited before a worker began.
            _ if result == -libc::EINTR || result == -libc::ECANCELED => return true,
            0 => None,
            1.. => {
                self.moved += result as u64;
                if self.moved < self.length {
                    return true;
                }
                None
            }
            // O_DIRECT cannot go on behind an unaligned end of file.
            _ if result == -libc::EINVAL && self.moved > 0 => None,
            _ => Some(-result),
        };
        self.outcome = Some(Outcome { bytes: self.moved, errno });
        false
    }

    /// The buffer it was given.
    pub(super) fn into_buffer(self) -> Option<AlignedBuf> {
        self.keep.buffer
    }

    pub(super) fn uses_window(&self) -> bool {
        self.keep.window.is_some()
    }
}

/// A transfer under way. Dropping it lets the transfer go on; one that uses a window is waited for.
#[must_use = "errors are only seen by waiting"]
pub struct Transfer {
    engine: Arc<Engine>,
    key: Option<usize>,
}

impl Transfer {
    pub(super) fn new(engine: Arc<Engine>, key: usize) -> Self {
        Transfer { engine, key: Some(key) }
    }

    /// Blocks until it has ended. Gives the buffer back, if it had one.
    pub fn wait(mut self) -> (Outcome, Option<AlignedBuf>) {
        let key = self.key.take().expect("taken by wait or drop only");
        let request = self.engine.table.wait(&self.engine.ring, key);
        let outcome = request.outcome.expect("wait returns ended requests");
        (outcome, request.into_buffer())
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        // A window keeps its engine alive, so forgetting one could leave both to nobody.
        if let Some(key) = self.key.take()
            && !self.engine.table.forget(key)
        {
            self.engine.table.wait(&self.engine.ring, key);
        }
    }
}

impl std::fmt::Debug for Transfer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Transfer")
    }
}
