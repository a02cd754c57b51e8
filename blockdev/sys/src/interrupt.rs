//! Something to wait for: an interrupt of a device, real or emulated, or a message of its bus driver.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

/// An eventfd(2): the kernel, an emulated device, or a thread that wants a waiter to look up notifies it.
///
/// Notifications before a wait are not lost; several of them are one.
#[derive(Debug)]
pub struct Interrupt(EventFd);

impl Interrupt {
    /// One that nobody has notified yet.
    ///
    /// # Errors
    /// What eventfd(2) answers.
    pub fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Interrupt(EventFd::from_value_and_flags(0, flags)?))
    }

    /// Wakes whoever waits, or the next to wait.
    ///
    /// # Errors
    /// What write(2) answers.
    pub fn notify(&self) -> io::Result<()> {
        match self.0.write(1) {
            // The counter is full: there are notifications enough.
            Ok(_) | Err(Errno::EAGAIN) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Waits until it is notified and takes all notifications so far. False: nobody did for as long as `timeout`; `None` waits for ever.
    ///
    /// # Errors
    /// What poll(2) and read(2) answer.
    pub fn wait(&self, timeout: Option<Duration>) -> io::Result<bool> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            if self.take()? {
                return Ok(true);
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Ok(false);
            }
            let left = left.map_or(PollTimeout::NONE, poll_timeout);
            match poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], left) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Takes all notifications so far; false if there are none. Never waits.
    ///
    /// # Errors
    /// What read(2) answers.
    pub fn take(&self) -> io::Result<bool> {
        match self.0.read() {
            Ok(_) => Ok(true),
            Err(Errno::EAGAIN) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// The descriptor's number, as a driver of the kernel takes it.
    pub(crate) fn raw_fd(&self) -> i32 {
        self.0.as_fd().as_raw_fd()
    }
}

impl AsFd for Interrupt {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Rounded up to milliseconds, so that a wait does not spin at its end.
fn poll_timeout(left: Duration) -> PollTimeout {
    PollTimeout::try_from(left.as_nanos().div_ceil(1_000_000)).unwrap_or(PollTimeout::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;

    #[test]
    fn notifications_before_a_wait_are_one_and_not_lost() {
        let interrupt = Interrupt::new().expect("eventfd");
        assert!(!interrupt.take().expect("take"));
        interrupt.notify().expect("notify");
        interrupt.notify().expect("notify");
        assert!(interrupt.wait(None).expect("wait"));
        assert!(!interrupt.wait(Some(Duration::ZERO)).expect("wait"));
    }

    #[test]
    fn a_wait_ends_at_its_timeout_and_not_before() {
        let interrupt = Interrupt::new().expect("eventfd");
        let start = Instant::now();
        assert!(!interrupt.wait(Some(Duration::from_micros(1500))).expect("wait"));
        assert!(start.elapsed() >= Duration::from_micros(1500));
    }

    #[test]
    fn a_waiter_is_woken() {
        let interrupt = Arc::new(Interrupt::new().expect("eventfd"));
        let waiter = thread::spawn({
            let interrupt = interrupt.clone();
            move || interrupt.wait(Some(Duration::from_secs(60)))
        });
        interrupt.notify().expect("notify");
        assert!(waiter.join().expect("no panic").expect("wait"));
    }
}
