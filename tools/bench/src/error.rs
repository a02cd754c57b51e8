//! What can go wrong before and during a run.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// Where an option was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A line of a job file, counted from 1.
    Line {
        /// The file, as named.
        file: PathBuf,
        /// The line.
        line: usize,
    },
    /// The command line.
    CommandLine,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Line { file, line } => write!(f, "{}:{line}", file.display()),
            Place::CommandLine => f.write_str("command line"),
        }
    }
}

/// Why a benchmark did not start, or a job of it ended early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something that was typed is wrong.
    #[error("{place}: {what}")]
    Input {
        /// Where.
        place: Place,
        /// What is wrong, and what was expected.
        what: String,
    },
    /// The options of a job contradict each other.
    #[error("{place}: job {job}: {what}")]
    Job {
        /// Where the job begins.
        place: Place,
        /// Its name.
        job: String,
        /// What is wrong, and what to do.
        what: String,
    },
    /// A system call failed.
    #[error("cannot {operation} {object}: {source}")]
    System {
        /// What was tried.
        operation: &'static str,
        /// On what.
        object: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A job would have written to a block device that something else has.
    #[error("{device} is mounted or in use, and nothing was written to it: name a device that nothing else has")]
    InUse {
        /// The device.
        device: String,
    },
    /// The client library of peerfs failed.
    #[error(transparent)]
    Client(#[from] peerfs_client::Error),
    /// `path=direct`, and a range went, or would go, another way.
    #[error("path=direct: {file}: {bytes} bytes from offset {offset} on are not direct: {why}")]
    NotDirect {
        /// The file.
        file: String,
        /// Start of the range, bytes.
        offset: u64,
        /// Its length, bytes.
        bytes: u64,
        /// The reason, and its remedy.
        why: String,
    },
    /// A block does not hold what was written to it.
    #[error("verify: {file}: the block of {length} bytes at offset {offset}: {what}")]
    Verify {
        /// The file.
        file: String,
        /// Offset of the block, bytes.
        offset: u64,
        /// Its length, bytes.
        length: u64,
        /// What is wrong with it.
        what: String,
    },
}

impl Error {
    /// A wrong value or word.
    pub(crate) fn input(place: &Place, what: impl Into<String>) -> Error {
        Error::Input { place: place.clone(), what: what.into() }
    }

    /// A failed system call on an object.
    pub(crate) fn system(operation: &'static str, object: impl fmt::Display, source: io::Error) -> Error {
        Error::System { operation, object: object.to_string(), source }
    }

    /// The error number (errno.h) that stands for it in fio's output.
    pub(crate) fn errno(&self) -> i32 {
        use nix::errno::Errno;
        let errno = match self {
            Error::Input { .. } | Error::Job { .. } => Errno::EINVAL,
            Error::Verify { .. } => Errno::EILSEQ,
            Error::NotDirect { .. } => Errno::ENOTSUP,
            Error::InUse { .. } => Errno::EBUSY,
            Error::System { source, .. } | Error::Client(peerfs_client::Error::System { source, .. }) => {
                return source.raw_os_error().unwrap_or(Errno::EIO as i32);
            }
            Error::Client(_) => Errno::EIO,
        };
        errno as i32
    }
}
