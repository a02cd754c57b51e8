//! Sending an outcome to the kernel, whichever kind of reply it is.

use std::panic::{AssertUnwindSafe, catch_unwind};

use fuser::Errno;

use super::translate::errno;
use crate::error::Result;

/// Replies that can carry an error.
pub trait Reply: Send + 'static {
    /// Answers with an error number.
    fn fail(self, errno: Errno);
}

macro_rules! replies {
    ($($name:ident),*) => {
        $(impl Reply for fuser::$name {
            fn fail(self, errno: Errno) {
                self.error(errno);
            }
        })*
    };
}

replies!(
    ReplyAttr,
    ReplyCreate,
    ReplyData,
    ReplyDirectory,
    ReplyDirectoryPlus,
    ReplyEmpty,
    ReplyEntry,
    ReplyIoctl,
    ReplyLseek,
    ReplyOpen,
    ReplyPoll,
    ReplyStatfs,
    ReplyWrite,
    ReplyXattr
);

/// Answers a request: `success` sends the value. Errors that say something is wrong with the volume are logged.
pub fn answer<R: Reply, T>(operation: &'static str, reply: R, outcome: Result<T>, success: impl FnOnce(R, T)) {
    match outcome {
        Ok(value) => success(reply, value),
        Err(error) => {
            if error.is_internal() {
                tracing::warn!(operation, %error, "operation failed");
            }
            reply.fail(errno(&error));
        }
    }
}

/// Runs a request. A panic is a bug, but one request's: its reply is dropped, which
/// answers EIO, and the mount goes on.
pub fn contain(operation: &'static str, job: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(job)).is_err() {
        tracing::error!(operation, "bug: the operation panicked; it was answered with EIO");
    }
}
