//! A handle on a process that cannot come to mean another one when its number is reused.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// A process, alive or ended.
#[derive(Debug)]
pub struct ProcessHandle(OwnedFd);

impl ProcessHandle {
    /// The process with this number.
    ///
    /// # Errors
    /// ESRCH when there is none.
    pub fn open(pid: u32) -> io::Result<ProcessHandle> {
        let pid = libc::pid_t::try_from(pid).map_err(|_| Errno::ESRCH)?;
        // SAFETY: takes integers, returns a descriptor or -1.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a fresh descriptor that nothing else owns.
        Ok(ProcessHandle(unsafe { OwnedFd::from_raw_fd(fd as i32) }))
    }

    /// Waits until the process has ended; `false` when it still runs after `timeout`.
    ///
    /// # Errors
    /// What poll(2) answers.
    pub fn wait_exit(&self, timeout: Duration) -> io::Result<bool> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
            let milliseconds = left.as_micros().div_ceil(1000);
            match poll(&mut fds, PollTimeout::try_from(milliseconds).unwrap_or(PollTimeout::MAX)) {
                Ok(0) if Instant::now() >= deadline => return Ok(false),
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return Ok(true),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends SIGKILL.
    ///
    /// # Errors
    /// ESRCH when it has ended, EPERM when it belongs to somebody else.
    pub fn kill(&self) -> io::Result<()> {
        // SAFETY: a valid descriptor, integers, and no siginfo.
        let result = unsafe {
            libc::syscall(libc::SYS_pidfd_send_signal, self.0.as_raw_fd(), libc::SIGKILL, std::ptr::null::<libc::siginfo_t>(), 0)
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn the_end_of_a_process_is_seen_and_can_be_brought_about() {
        let mut child = Command::new("sleep").arg("60").spawn().expect("sleep(1)");
        let process = ProcessHandle::open(child.id()).expect("our own child");
        assert!(!process.wait_exit(Duration::ZERO).expect("poll"));
        process.kill().expect("our own child");
        assert!(process.wait_exit(Duration::from_secs(10)).expect("poll"));
        child.wait().expect("our own child");
        assert_eq!(process.kill().expect_err("reaped").raw_os_error(), Some(libc::ESRCH));
        assert!(ProcessHandle::open(u32::MAX).is_err());
    }
}
