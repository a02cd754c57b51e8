//! Numbers nobody can guess.

use std::io;

/// 64 bits from the kernel's generator.
///
/// # Errors
/// What getrandom(2) answers.
pub fn random_u64() -> io::Result<u64> {
    let mut bytes = [0u8; 8];
    loop {
        // SAFETY: the buffer is valid for its length. Requests of up to 256 bytes are never cut short.
        let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        if got == bytes.len() as isize {
            return Ok(u64::from_ne_bytes(bytes));
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
