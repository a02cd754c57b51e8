//! A ring for one thread, which keeps several transfers of one file under way and
//! takes them in whatever order they end: what a benchmark measures.
//!
//! Each slot has a buffer of its own, which nobody reaches while a transfer uses it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use io_uring::{IoUring, opcode, types};

use super::Direction;
use crate::buffer::AlignedBuf;

/// A transfer that has ended: its slot, and bytes moved (less than asked for at the end of the file) or the error.
pub type Ended = (usize, io::Result<usize>);

/// Up to `depth` transfers of one file.
pub struct IoQueue {
    ring: IoUring,
    file: Arc<File>,
    buffers: Vec<AlignedBuf>,
    /// Parallel to `buffers`: a transfer uses it.
    busy: Vec<bool>,
    running: usize,
}

impl IoQueue {
    /// A queue with `depth` slots, each with a buffer of at least `buffer_bytes`.
    ///
    /// # Errors
    /// What io_uring_setup(2) answers: `InvalidInput` when the queue is too deep.
    pub fn new(file: Arc<File>, depth: u32, buffer_bytes: usize) -> io::Result<Self> {
        let ring = IoUring::builder().dontfork().build(depth.max(1))?;
        let buffers: Vec<_> = (0..depth.max(1)).map(|_| AlignedBuf::zeroed(buffer_bytes)).collect();
        let busy = vec![false; buffers.len()];
        Ok(IoQueue { ring, file, buffers, busy, running: 0 })
    }

    /// Transfers under way.
    pub fn running(&self) -> usize {
        self.running
    }

    /// The buffer of a slot; `None` while a transfer uses it, and for slots that do not exist.
    pub fn buffer(&mut self, slot: usize) -> Option<&mut [u8]> {
        match self.busy.get(slot) {
            Some(false) => Some(&mut self.buffers[slot]),
            _ => None,
        }
    }

    /// Starts a transfer between the first `length` bytes of a slot's buffer and the file at `offset` (bytes).
    ///
    /// # Errors
    /// `InvalidInput` for a busy slot or more than its buffer holds; what io_uring_enter(2) answers.
    pub fn submit(&mut self, direction: Direction, slot: usize, offset: u64, length: usize) -> io::Result<()> {
        let buffer = self.buffer(slot).filter(|buffer| length <= buffer.len()).ok_or(io::ErrorKind::InvalidInput)?;
        let (address, length) = (buffer.as_mut_ptr(), u32::try_from(length).map_err(|_| io::ErrorKind::InvalidInput)?);
        let fd = types::Fd(self.file.as_raw_fd());
        let entry = match direction {
            Direction::Read => opcode::Read::new(fd, address, length).offset(offset).build(),
            Direction::Write => opcode::Write::new(fd, address, length).offset(offset).build(),
        };
        // SAFETY: file and buffer are ours and stay until the completion is seen: `buffer` lends no busy slot,
        // and dropping the queue waits, or leaves the buffers to the kernel.
        let pushed = unsafe { self.ring.submission().push(&entry.user_data(slot as u64)) };
        pushed.map_err(|_| io::Error::from(io::ErrorKind::WouldBlock))?;
        self.busy[slot] = true;
        self.running += 1;
        loop {
            match self.ring.submit() {
                Err(error) if is_transient(&error) => {}
                other => return other.map(drop),
            }
        }
    }

    /// Waits until at least one transfer has ended, if any is under way, and adds those that have to `ended`.
    ///
    /// # Errors
    /// What io_uring_enter(2) answers.
    pub fn wait(&mut self, ended: &mut Vec<Ended>) -> io::Result<()> {
        while self.running > 0 {
            if self.reap(ended) > 0 {
                return Ok(());
            }
            match self.ring.submit_and_wait(1) {
                Err(error) if is_transient(&error) => {}
                other => drop(other?),
            }
        }
        Ok(())
    }

    fn reap(&mut self, ended: &mut Vec<Ended>) -> usize {
        let before = ended.len();
        for entry in self.ring.completion() {
            let slot = entry.user_data() as usize;
            self.busy[slot] = false;
            self.running -= 1;
            let result = match entry.result() {
                count @ 0.. => Ok(count as usize),
                errno => Err(io::Error::from_raw_os_error(-errno)),
            };
            ended.push((slot, result));
        }
        ended.len() - before
    }
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY))
}

impl Drop for IoQueue {
    fn drop(&mut self) {
        let mut ended = Vec::new();
        while self.running > 0 {
            if self.wait(&mut ended).is_err() {
                // The kernel may still write to them.
                std::mem::forget(std::mem::take(&mut self.buffers));
                return;
            }
        }
    }
}

impl std::fmt::Debug for IoQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "IoQueue({} of {} under way)", self.running, self.buffers.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::private_memfd;

    fn one(queue: &mut IoQueue) -> (usize, usize) {
        let mut ended = Vec::new();
        queue.wait(&mut ended).expect("wait");
        assert_eq!(ended.len(), 1);
        let (slot, moved) = ended.remove(0);
        (slot, moved.expect("no error"))
    }

    #[test]
    fn bytes_come_back_and_busy_buffers_are_not_lent() {
        let file = Arc::new(private_memfd("queue", 8192).expect("memfd"));
        let mut queue = IoQueue::new(file, 2, 4096).expect("a ring");
        queue.buffer(0).expect("idle")[..600].fill(7);
        queue.submit(Direction::Write, 0, 100, 600).expect("submit");
        assert!(queue.buffer(0).is_none() && queue.submit(Direction::Write, 0, 0, 1).is_err());
        assert_eq!(one(&mut queue), (0, 600));
        queue.submit(Direction::Read, 1, 99, 602).expect("submit");
        assert_eq!(one(&mut queue), (1, 602));
        let buffer = queue.buffer(1).expect("idle");
        assert_eq!((buffer[0], buffer[1], buffer[600], buffer[601]), (0, 7, 7, 0));
    }

    #[test]
    fn what_does_not_fit_is_refused_and_the_end_of_the_file_is_short() {
        let file = Arc::new(private_memfd("queue", 4096).expect("memfd"));
        let mut queue = IoQueue::new(file, 1, 4096).expect("a ring");
        assert!(queue.submit(Direction::Read, 0, 0, 4097).is_err());
        assert!(queue.submit(Direction::Read, 1, 0, 1).is_err());
        queue.submit(Direction::Read, 0, 4000, 4096).expect("submit");
        assert_eq!(one(&mut queue), (0, 96));
        queue.submit(Direction::Read, 0, 0, 4096).expect("submit");
        drop(queue);
    }
}
