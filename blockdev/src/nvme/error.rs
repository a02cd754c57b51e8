//! What a controller can fail with.

use std::io;

use peerfs_nvme_spec::{Status, StatusType};

/// Why a controller cannot be used, or a command had no success.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NvmeError {
    /// Registers read as all ones.
    #[error("the controller does not answer: it was removed, or its memory decoding is off")]
    Gone,
    /// CSTS.RDY did not follow CC.EN.
    #[error(
        "the controller did not become {state} within {waited_ms} ms (CSTS {csts:#x}): reset it, or power the machine off and on"
    )]
    Stuck {
        /// What was waited for.
        state: &'static str,
        /// How long, milliseconds.
        waited_ms: u64,
        /// Controller status at the end.
        csts: u32,
    },
    /// The controller says that it has failed.
    #[error("the controller reports a fatal error (CSTS {csts:#x})")]
    Fatal {
        /// Controller status.
        csts: u32,
    },
    /// The controller was reset behind the driver's back.
    #[error("the controller was reset by somebody else")]
    Disabled,
    /// A command was not completed in time.
    #[error("a command was not completed within {waited_ms} ms")]
    Timeout {
        /// How long, milliseconds.
        waited_ms: u64,
    },
    /// Something that no controller should say.
    #[error("the controller answers nonsense: {0}")]
    Nonsense(String),
    /// Something that this driver cannot work with.
    #[error("{0}")]
    Unsupported(String),
    /// A command was completed with an error.
    #[error("{command}: {status}")]
    Command {
        /// Which.
        command: &'static str,
        /// What the controller says.
        status: Status,
    },
    /// The operating system refused something.
    #[error("{what}: {}", io::Error::from_raw_os_error(*errno))]
    System {
        /// What was tried.
        what: &'static str,
        /// Error number (errno.h).
        errno: i32,
    },
    /// The queue of a command was deleted before it was complete.
    #[error("the queue was deleted: its memory was taken back")]
    QueueDeleted,
    /// Every queue that may be deleted by its user is in use.
    #[error("all {0} queues for users of their own are in use: wait for another transfer to end")]
    NoQueueLeft(u16),
    /// Power failed while it had a volatile write cache.
    #[error("the controller was switched off and on: what was written since the last flush may be lost")]
    CacheLost,
    /// It was reset too often, or could not be reset: it is not used any more until it is opened again.
    #[error("the controller was given up: {0}; unmount, see to the device, and mount again")]
    GivenUp(String),
}

impl NvmeError {
    pub(super) fn system(what: &'static str, err: &io::Error) -> Self {
        match err.raw_os_error() {
            Some(errno) => NvmeError::System { what, errno },
            None => NvmeError::Unsupported(format!("{what}: {err}")),
        }
    }

    /// The error number to answer a request with (errno.h).
    pub fn errno(&self) -> i32 {
        match self {
            NvmeError::Command { status, .. } => status_errno(*status),
            NvmeError::System { errno, .. } => *errno,
            NvmeError::Gone => libc::ENODEV,
            NvmeError::NoQueueLeft(_) => libc::EBUSY,
            _ => libc::EIO,
        }
    }

    /// These blocks are lost, the device is not.
    pub(super) fn is_media_error(&self) -> bool {
        matches!(self, NvmeError::Command { status, .. } if status.kind() == StatusType::Media)
    }

    /// The same command may succeed when it is sent again.
    pub(super) fn is_passing(&self) -> bool {
        let NvmeError::Command { status, .. } = self else { return false };
        let passing = [Status::NAMESPACE_NOT_READY, Status::ABORTED_BY_QUEUE_DELETION, Status::INTERNAL_ERROR];
        !status.do_not_retry() && passing.iter().any(|known| known.type_and_code() == status.type_and_code())
    }
}

fn status_errno(status: Status) -> i32 {
    match status.type_and_code() {
        code if code == Status::CAPACITY_EXCEEDED.type_and_code() => libc::ENOSPC,
        code if code == Status::WRITE_PROTECTED.type_and_code() => libc::EROFS,
        code if code == Status::INVALID_OPCODE.type_and_code() => libc::EOPNOTSUPP,
        _ => libc::EIO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(status: Status) -> NvmeError {
        NvmeError::Command { command: "read", status }
    }

    #[test]
    fn error_numbers() {
        assert_eq!(command(Status::CAPACITY_EXCEEDED).errno(), libc::ENOSPC);
        assert_eq!(command(Status::WRITE_PROTECTED).errno(), libc::EROFS);
        assert_eq!(command(Status::UNRECOVERED_READ_ERROR).errno(), libc::EIO);
        assert_eq!(NvmeError::Gone.errno(), libc::ENODEV);
    }

    #[test]
    fn which_may_be_tried_again() {
        assert!(command(Status::NAMESPACE_NOT_READY).is_passing());
        assert!(!command(Status(Status::NAMESPACE_NOT_READY.0 | 1 << 14)).is_passing());
        assert!(!command(Status::UNRECOVERED_READ_ERROR).is_passing());
        assert!(command(Status::WRITE_FAULT).is_media_error() && !NvmeError::Gone.is_media_error());
    }
}
