//! Children that share or copy this address space: what a server that binds importers to address spaces has to tell
//! apart, so the tests make all of them.

use std::fs;
use std::io;
use std::ptr;

use nix::errno::Errno;

/// How a child relates to the address space of its parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kinship {
    /// A copy, as fork(2) makes it.
    Fork,
    /// The same one, while the parent is suspended, as vfork(2) makes it.
    Vfork,
    /// The same one, in another process (CLONE_VM without CLONE_THREAD).
    Sibling,
}

/// Bytes of stack of a child that shares the address space.
const STACK_BYTES: usize = 1 << 20;

/// Runs `work` in a child and answers what it answers; the caller waits. `None`: a signal ended it.
///
/// # Errors
/// EBUSY when the program has other threads: the child would share or copy what they are in the middle of.
/// Otherwise what clone(2) answers.
pub fn run_in_child(kinship: Kinship, work: impl FnOnce() -> u8) -> io::Result<Option<u8>> {
    if fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(Errno::EBUSY.into());
    }
    let mut stack = vec![0_u128; STACK_BYTES / 16];
    let mut work = Some(work);
    let flags = match kinship {
        Kinship::Fork => 0,
        Kinship::Vfork => libc::CLONE_VM | libc::CLONE_VFORK,
        Kinship::Sibling => libc::CLONE_VM,
    };
    let top = stack.as_mut_ptr_range().end;
    let argument = ptr::from_mut(&mut work).cast();
    // SAFETY: the stack and the closure live until the child has ended, which is waited for below. No other thread
    // exists, and this one is in the kernel all that time, so the child alone uses what they share.
    let pid = unsafe { libc::clone(enter::<_>(&work), top.cast(), flags | libc::SIGCHLD, argument) };
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    let status = wait(pid)?;
    drop(stack);
    Ok(libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status) as u8))
}

/// The entry of a closure of this type.
fn enter<F: FnOnce() -> u8>(_of: &Option<F>) -> extern "C" fn(*mut libc::c_void) -> libc::c_int {
    extern "C" fn run<F: FnOnce() -> u8>(argument: *mut libc::c_void) -> libc::c_int {
        // SAFETY: run_in_child passes a valid Option of exactly this type, which nobody else uses meanwhile.
        let work = unsafe { &mut *argument.cast::<Option<F>>() }.take();
        let code = work.map_or(u8::MAX, |work| work());
        // SAFETY: _exit runs no handlers of the parent and does not return.
        unsafe { libc::_exit(code.into()) }
    }
    run::<F>
}

fn wait(pid: libc::pid_t) -> io::Result<libc::c_int> {
    let mut status = 0;
    loop {
        // SAFETY: status is a valid place for the result.
        if unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) } == pid {
            return Ok(status);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Another process with this address space that does nothing, and so keeps it alive beyond an exec of this one. Ends
/// when dropped, and with the thread that made it.
#[derive(Debug)]
pub struct ParkedSibling {
    pid: libc::pid_t,
    _stack: Vec<u128>,
}

impl ParkedSibling {
    /// Starts one.
    ///
    /// # Errors
    /// What clone(2) answers.
    pub fn start() -> io::Result<ParkedSibling> {
        extern "C" fn park(parent: *mut libc::c_void) -> libc::c_int {
            // SAFETY: system calls that touch no memory; the last never returns.
            unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                // A parent that has died by now sends nothing any more.
                while libc::getppid() as usize == parent.addr() {
                    libc::pause();
                }
                libc::_exit(0)
            }
        }
        let mut stack = vec![0_u128; STACK_BYTES / 16];
        let top = stack.as_mut_ptr_range().end;
        let parent = ptr::without_provenance_mut(std::process::id() as usize);
        // SAFETY: the stack lives as long as the child; the child only makes system calls on it and changes no memory
        // of ours but errno, which is not read after a call that succeeded.
        let pid = unsafe { libc::clone(park, top.cast(), libc::CLONE_VM | libc::SIGCHLD, parent) };
        if pid < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(ParkedSibling { pid, _stack: stack })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid.cast_unsigned()
    }
}

impl Drop for ParkedSibling {
    fn drop(&mut self) {
        // SAFETY: our own child, which was not waited for yet, so its number is still its own.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
        // It cannot fail: the child is ours and ends.
        let _ = wait(self.pid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parked_sibling_shares_the_address_space_and_ends() {
        let sibling = ParkedSibling::start().expect("clone");
        assert!(crate::same_address_space(std::process::id(), sibling.pid()).expect("kcmp"));
        assert!(!crate::same_address_space(std::process::id(), 1).unwrap_or(false));
        drop(sibling);
    }

    #[test]
    fn a_program_with_threads_may_not_fork_through_here() {
        let refused = std::thread::spawn(|| run_in_child(Kinship::Fork, || 0)).join().expect("no panic");
        assert_eq!(refused.expect_err("two threads").raw_os_error(), Some(libc::EBUSY));
    }
}
