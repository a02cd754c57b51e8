//! ioctl(2) on commands that carry the size of their argument.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use zerocopy::{FromBytes, IntoBytes};

const SIZE_SHIFT: u32 = 16;
const SIZE_MASK: u32 = 0x3FFF;

/// Calls `command` (as made by `_IOWR`) with `argument`, which the kernel reads and overwrites. Repeated when interrupted.
///
/// # Errors
/// What ioctl(2) answers; the argument may have been changed all the same. `InvalidInput` when the command is for another size.
pub fn ioctl<T: FromBytes + IntoBytes>(file: impl AsFd, command: u32, argument: &mut T) -> io::Result<i32> {
    if ((command >> SIZE_SHIFT) & SIZE_MASK) as usize != size_of::<T>() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    loop {
        // SAFETY: the command says how many bytes the receiver may read and write, which is the size of T,
        // and T is valid for every bit pattern.
        let result = unsafe { libc::ioctl(file.as_fd().as_raw_fd(), command as libc::Ioctl, std::ptr::from_mut(argument)) };
        if result >= 0 {
            return Ok(result);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
