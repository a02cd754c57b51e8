//! Functions of the caller that the library's thread calls.

use std::ffi::c_void;

use peerfs_client::Revocation;

use crate::failure::Failure;
use crate::values::{PeerfsRevocation, RevokeCallback};

/// A pointer that the caller says may be used on the library's thread.
#[derive(Clone, Copy)]
struct Data(*mut c_void);

// SAFETY: the pointer is not used here, only handed to the caller's function, whose business it is.
unsafe impl Send for Data {}
// SAFETY: as above.
unsafe impl Sync for Data {}

impl Data {
    fn pointer(self) -> *mut c_void {
        self.0
    }
}

/// The caller's function as the client library wants it.
pub(crate) fn revoke_callback(
    callback: RevokeCallback,
    data: *mut c_void,
) -> Result<impl Fn(&Revocation) + Clone + Send + Sync + 'static, Failure> {
    let callback = callback.ok_or_else(|| Failure::argument("the callback"))?;
    let data = Data(data);
    Ok(move |revocation: &Revocation| callback(&PeerfsRevocation::from(revocation), data.pointer()))
}
