//! Extended attributes, which std does not know.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Sets an extended attribute of the file that `path` leads to.
///
/// # Errors
/// What setxattr(2) answers; `InvalidInput` for a NUL in path or name.
pub fn set_xattr(path: &Path, name: &str, value: &[u8]) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let name = CString::new(name)?;
    // SAFETY: two terminated strings and a buffer with its length, all valid during the call.
    let result = unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Longest value that [`get_xattr`] answers, bytes.
pub const XATTR_VALUE_MAX: usize = 256;

/// Gets an extended attribute of a file; `None` where it has none of this name.
///
/// # Errors
/// What getxattr(2) answers (ERANGE: longer than [`XATTR_VALUE_MAX`]); `InvalidInput` for a NUL in path or name.
pub fn get_xattr(path: &Path, name: &str) -> io::Result<Option<Vec<u8>>> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let name = CString::new(name)?;
    let mut value = vec![0; XATTR_VALUE_MAX];
    // SAFETY: both strings end with NUL, and the kernel writes into `value` no more than its length.
    let length = unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    match usize::try_from(length) {
        Ok(length) => {
            value.truncate(length);
            Ok(Some(value))
        }
        Err(_) => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENODATA) => Ok(None),
            error => Err(error),
        },
    }
}
