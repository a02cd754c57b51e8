//! The ring itself: the only place that touches queue memory.

use std::io;
use std::sync::{Mutex, PoisonError};

use io_uring::{IoUring, squeue};

/// Submission queue entries. Each is handed to the kernel at once, so few are enough.
const QUEUE_ENTRIES: u32 = 64;

/// Most requests that may be under way: the completion queue holds as many, so it never overflows.
pub(super) const MAX_RUNNING: usize = 1024;

const ENTER_GETEVENTS: u32 = 1;

/// An io_uring whose submission side any thread may use.
pub(super) struct Ring {
    ring: IoUring,
    submitting: Mutex<()>,
    reaping: Mutex<()>,
}

impl Ring {
    pub(super) fn new(slots: u32) -> io::Result<Self> {
        let ring = IoUring::builder().setup_cqsize(2 * MAX_RUNNING as u32).dontfork().build(QUEUE_ENTRIES)?;
        ring.submitter().register_buffers_sparse(slots)?;
        Ok(Ring { ring, submitting: Mutex::new(()), reaping: Mutex::new(()) })
    }

    /// Pins the pages of `[start, start + len)` under `slot`. The kernel keeps the pages, not
    /// the mapping: the range may be unmapped afterwards.
    pub(super) fn register(&self, slot: u16, start: *mut u8, len: usize) -> io::Result<()> {
        let range = libc::iovec { iov_base: start.cast(), iov_len: len };
        self.update(slot, range)
    }

    /// Lets go of the pages under `slot`. Requests under way keep theirs.
    pub(super) fn unregister(&self, slot: u16) -> io::Result<()> {
        let nothing = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        self.update(slot, nothing)
    }

    fn update(&self, slot: u16, range: libc::iovec) -> io::Result<()> {
        // SAFETY: the kernel validates and pins the range itself; requests on it are made only
        // by the table, for owners that keep the memory's content free of Rust references.
        unsafe { self.ring.submitter().register_buffers_update(u32::from(slot), &[range], None) }
    }

    /// Hands one request to the kernel.
    ///
    /// # Safety
    /// Buffer, file descriptor and registered slot named by the entry must stay valid, and the
    /// memory unused by others, until its completion has been reaped.
    pub(super) unsafe fn push(&self, entry: &squeue::Entry) {
        let _guard = self.submitting.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: `submitting` makes us the only user of the submission queue; the entry's
        // contents are the caller's promise.
        let pushed = unsafe { self.ring.submission_shared().push(entry) };
        if pushed.is_err() {
            fatal("the submission queue is full although every entry was submitted");
        }
        loop {
            match self.ring.submit() {
                Ok(1..) => return,
                Ok(0) => {}
                Err(err) => match err.raw_os_error() {
                    Some(libc::EINTR | libc::EAGAIN | libc::EBUSY) => std::thread::yield_now(),
                    _ => fatal(&format!("io_uring refuses a request: {err}")),
                },
            }
        }
    }

    /// Waits for at least one completion; gives all there are as (user data, result).
    pub(super) fn reap(&self, batch: &mut Vec<(u64, i32)>) {
        let _guard = self.reaping.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            // SAFETY: `reaping` makes us the only user of the completion queue.
            let ready = unsafe { self.ring.completion_shared() };
            batch.extend(ready.map(|entry| (entry.user_data(), entry.result())));
            if !batch.is_empty() {
                return;
            }
            // SAFETY: submits nothing and passes no argument.
            let waited = unsafe { self.ring.submitter().enter::<libc::sigset_t>(0, 1, ENTER_GETEVENTS, None) };
            match waited.map_err(|err| err.raw_os_error()) {
                Ok(_) | Err(Some(libc::EINTR)) => {}
                Err(Some(libc::EAGAIN | libc::EBUSY)) => std::thread::yield_now(),
                Err(errno) => fatal(&format!("io_uring cannot wait: error {errno:?}")),
            }
        }
    }
}

/// Ends the process: the kernel may still write to memory that would be freed by going on.
fn fatal(why: &str) -> ! {
    eprintln!("peerfs: {why}");
    std::process::abort();
}
