//! Errors as codes, with a message for each thread.

use std::cell::RefCell;
use std::ffi::{CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

use peerfs_client::{Error, Reason};

/// What a call answers. peerfs_last_error() names the object and what to do.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// It worked.
    Ok = 0,
    /// The file or directory is on no peerfs mount, or is none that a device can map.
    NotPeerfs = 1,
    /// The session belongs to another process (this one is a child made by fork(2)) or has ended: open a new one.
    StaleContext = 2,
    /// The server of the mount has gone: nothing of it may be used any more.
    ServerGone = 3,
    /// The direct mapping was taken back: read and write by copying, or map again.
    Revoked = 4,
    /// The range was never direct; peerfs_last_reason() tells why.
    Fallback = 5,
    /// The range is direct, but in several pieces: ask for each of peerfs_mapping_pieces().
    Split = 6,
    /// The range is empty or leaves what it has to lie in.
    Range = 7,
    /// The mapping was not made with PEERFS_MAP_WRITE.
    ReadOnly = 8,
    /// No atomic operation is possible here; peerfs_last_reason() tells why.
    AtomicUnsupported = 9,
    /// The word is not naturally aligned: its offset is no multiple of its size.
    Misaligned = 10,
    /// The address cannot be accessed as a mapping for a device, or the placement cannot be.
    Address = 11,
    /// The processor's mapping at the address has changed, so the device has lost it: renew it.
    AddressChanged = 12,
    /// An access guard is held at the address: release it first.
    AddressInUse = 13,
    /// No free addresses are left inside the limits.
    AddressSpaceFull = 14,
    /// A system call, or the server, refused; peerfs_last_errno() has the error number.
    System = 15,
    /// An argument is NULL or not valid; nothing was done.
    InvalidArgument = 16,
    /// The library has a bug, which was contained.
    Panic = 17,
    /// Any other failure, such as an answer of the server that this version of the library does not understand.
    Other = 18,
}

/// Why a call fails.
pub(crate) struct Failure {
    code: Code,
    message: String,
    errno: i32,
    reason: u32,
}

impl Failure {
    pub(crate) fn argument(what: &str) -> Failure {
        Failure { code: Code::InvalidArgument, message: format!("{what} is NULL or not valid"), errno: libc::EINVAL, reason: 0 }
    }

    pub(crate) fn revoked() -> Failure {
        let message = "the direct mapping was revoked: read and write by copying, or map again".to_owned();
        Failure { code: Code::Revoked, message, errno: 0, reason: 0 }
    }

    pub(crate) fn system(operation: &str) -> Failure {
        let error = std::io::Error::last_os_error();
        let errno = error.raw_os_error().unwrap_or(0);
        Failure { code: Code::System, message: format!("cannot {operation}: {error}"), errno, reason: 0 }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let (code, reason) = code(&error);
        let errno = match &error {
            Error::System { source, .. } => source.raw_os_error().unwrap_or(0),
            _ => 0,
        };
        Failure { code, message: error.to_string(), errno, reason: reason.map_or(0, Reason::code) }
    }
}

fn code(error: &Error) -> (Code, Option<Reason>) {
    let code = match error {
        Error::NotPeerfs { .. } => Code::NotPeerfs,
        Error::StaleContext => Code::StaleContext,
        Error::ServerGone => Code::ServerGone,
        Error::Revoked { .. } => Code::Revoked,
        Error::Fallback { reason, .. } => return (Code::Fallback, Some(*reason)),
        Error::AtomicUnsupported { reason, .. } => return (Code::AtomicUnsupported, Some(*reason)),
        Error::Split { .. } => Code::Split,
        Error::Range { .. } => Code::Range,
        Error::ReadOnly => Code::ReadOnly,
        Error::Misaligned { .. } => Code::Misaligned,
        Error::Address { .. } => Code::Address,
        Error::AddressChanged { .. } => Code::AddressChanged,
        Error::AddressInUse { .. } => Code::AddressInUse,
        Error::AddressSpaceFull { .. } => Code::AddressSpaceFull,
        Error::System { .. } => Code::System,
        Error::ImporterName { .. } | Error::PciAddress { .. } => Code::InvalidArgument,
        _ => Code::Other,
    };
    (code, None)
}

#[derive(Default)]
struct Last {
    message: CString,
    errno: i32,
    reason: u32,
}

thread_local! {
    static LAST: RefCell<Last> = RefCell::default();
}

/// Runs a call; its failure, or panic, becomes a code and this thread's message.
pub(crate) fn answer(call: impl FnOnce() -> Result<(), Failure>) -> Code {
    let failure = match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(())) => return Code::Ok,
        Ok(Err(failure)) => failure,
        Err(_) => Failure { code: Code::Panic, message: "internal error: the call was given up".to_owned(), errno: 0, reason: 0 },
    };
    let message = failure.message.replace('\0', " ");
    let last = Last { message: CString::new(message).unwrap_or_default(), errno: failure.errno, reason: failure.reason };
    LAST.with(|slot| *slot.borrow_mut() = last);
    failure.code
}

/// Gives an object back; a panic on the way is contained.
pub(crate) fn give_back<T>(object: Option<Box<T>>) {
    // Nobody could do anything about it.
    let _ = catch_unwind(AssertUnwindSafe(|| drop(object)));
}

/// Ends an object that callbacks may use until `end` has returned, and then gives it back, whatever `end` answers.
///
/// # Safety
/// `object` is NULL, or was handed over, is not being given back by anybody else, and is used by callbacks only.
pub(crate) unsafe fn end_and_give_back<T>(object: *mut T, end: impl FnOnce(&T) -> Result<(), Failure>) -> Code {
    answer(|| {
        // SAFETY: the caller's promise: it lives until it is given back below, and callbacks only share it.
        let Some(shared) = (unsafe { object.as_ref() }) else { return Ok(()) };
        let ended = end(shared);
        // SAFETY: it was handed over, so a box made it, and after `end` nobody else uses it: no callback does that was
        // waited for, and one that was not, because it waits for us, must not (see the header).
        give_back(Some(unsafe { Box::from_raw(object) }));
        ended
    })
}

/// What went wrong in the last call of this thread that failed, and what to do. Valid until the next call that fails.
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_last_error() -> *const c_char {
    LAST.with(|slot| slot.borrow().message.as_ptr())
}

/// Error number of the system call that failed last in this thread, else 0.
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_last_errno() -> i32 {
    LAST.with(|slot| slot.borrow().errno)
}

/// The `enum peerfs_reason` of this thread's last failure, else 0.
#[unsafe(no_mangle)]
pub extern "C" fn peerfs_last_reason() -> u32 {
    LAST.with(|slot| slot.borrow().reason)
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    use super::*;

    /// The message as C sees it.
    fn message() -> String {
        // SAFETY: the message is this thread's and lives until its next failure.
        unsafe { CStr::from_ptr(peerfs_last_error()) }.to_string_lossy().into_owned()
    }

    #[test]
    fn failures_have_a_code_and_a_message_of_the_thread() {
        assert_eq!(answer(|| Ok(())), Code::Ok);
        assert_eq!(answer(|| Err(Failure::argument("the\0file"))), Code::InvalidArgument);
        assert_eq!((message().as_str(), peerfs_last_errno()), ("the file is NULL or not valid", libc::EINVAL));
        assert_eq!(std::thread::spawn(message).join().expect("no panic"), "");
        let error = Error::Fallback { file_offset: 0, reason: Reason::Hole };
        assert_eq!(answer(|| Err(error.into())), Code::Fallback);
        assert_eq!(peerfs_last_reason(), Reason::Hole.code());
        let missing =
            Error::System { operation: "open", object: "x".into(), source: std::io::Error::from_raw_os_error(libc::ENOENT) };
        assert_eq!(answer(|| Err(missing.into())), Code::System);
        assert_eq!((peerfs_last_errno(), peerfs_last_reason()), (libc::ENOENT, 0));
    }

    #[test]
    fn a_panic_stays_inside() {
        assert_eq!(answer(|| panic!("a bug")), Code::Panic);
        assert!(message().contains("internal error"));
        struct Bug;
        impl Drop for Bug {
            fn drop(&mut self) {
                panic!("a bug");
            }
        }
        give_back(Some(Box::new(Bug)));
        give_back::<Bug>(None);
    }

    #[test]
    fn null_is_refused_or_ignored() {
        use crate::{file, guard, mapping};
        // SAFETY: every pointer is NULL.
        unsafe {
            assert_eq!(file::peerfs_file_open(std::ptr::null(), false, None), Code::InvalidArgument);
            assert_eq!(file::peerfs_file_read(None, 0, std::ptr::null_mut(), 1, None), Code::InvalidArgument);
            assert_eq!(mapping::peerfs_mapping_unmap(std::ptr::null_mut(), None), Code::Ok);
            assert_eq!(mapping::peerfs_mapping_read(None, 0, std::ptr::null_mut(), 0, None), Code::InvalidArgument);
        }
        assert_eq!(mapping::peerfs_mapping_fetch_add_u64(None, 0, 1, None), Code::InvalidArgument);
        assert!(guard::peerfs_guard_address(None).is_null() && !guard::peerfs_guard_still_valid(None));
        file::peerfs_file_close(None);
        guard::peerfs_guard_release(None);
    }
}
