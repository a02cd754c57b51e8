//! Copies between a file and an importer that the server drives.

use std::time::Duration;

use peerfs_abi::ioctl::{COPY_MAX, DeviceCopy, copy_flags};
use peerfs_abi::{ABI_VERSION, Reason};
use zerocopy::FromZeros;

use crate::Error;
use crate::file::File;
use crate::importer::packed_name;

/// Which way a copy goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyDirection {
    /// Out of the file.
    ToImporter,
    /// Into the file.
    FromImporter,
}

/// What to copy, and with whom.
#[derive(Debug, Clone)]
pub struct CopyRequest {
    /// `nvme:` and the controller's PCI address: an importer that the mount was given with `-o importer=`.
    pub importer: String,
    /// Which way.
    pub direction: CopyDirection,
    /// Where in the file, bytes; a multiple of the importer's logical block.
    pub offset: u64,
    /// How much, bytes. Out of a file, less if it ends before.
    pub length: u64,
    /// The importer's first logical block.
    pub block: u64,
}

/// What was copied. Sizes in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Copied {
    /// Through windows of a software aperture.
    pub direct_window: u64,
    /// Through a BAR: device to device.
    pub direct_bar: u64,
    /// Through main memory.
    pub fallback: u64,
    /// Those of them that were to go directly, and were revoked first.
    pub revoked: u64,
    /// Why the others did, the reason of most of them in the first piece where some did.
    pub reason: Option<Reason>,
    /// How long it took.
    pub elapsed: Duration,
}

impl Copied {
    /// All that was copied.
    pub fn bytes(&self) -> u64 {
        self.direct_window + self.direct_bar + self.fallback
    }
}

impl File {
    /// Has an importer that the server drives copy a range to or from its logical blocks, in pieces: device to device where
    /// that is decided, else through main memory. `progress` hears after each piece how much has been copied. What went to
    /// the importer is durable when this returns.
    ///
    /// # Errors
    /// EPERM: not the mount's owner. ENXIO: the mount has no such importer. ENODEV: a device is gone. EACCES: the file is open
    /// the wrong way. EINVAL:
    /// the offset is no multiple of the logical block. ERANGE: beyond the end of the namespace. EBUSY, EIO.
    pub fn copy(&self, request: &CopyRequest, mut progress: impl FnMut(u64)) -> Result<Copied, Error> {
        let begun = std::time::Instant::now();
        let mut copied = Copied::default();
        let mut argument = DeviceCopy::new_zeroed();
        argument.abi_version = ABI_VERSION;
        argument.importer = packed_name(&request.importer)?;
        if request.direction == CopyDirection::FromImporter {
            argument.flags = copy_flags::FROM_IMPORTER;
        }
        // One that copies nothing says how long a logical block is.
        self.copy_piece(&mut argument)?;
        let block_bytes = u64::from(argument.block_bytes).max(1);
        let cache_losses = argument.cache_losses;
        while copied.bytes() < request.length {
            let done = copied.bytes();
            argument.offset = request.offset.saturating_add(done);
            argument.block = request.block.saturating_add(done / block_bytes);
            argument.length = (request.length - done).min(COPY_MAX);
            let wanted = argument.length;
            self.copy_piece(&mut argument)?;
            copied.direct_window += argument.bytes_direct_window;
            copied.direct_bar += argument.bytes_direct_bar;
            copied.fallback += argument.bytes_fallback;
            copied.revoked += argument.bytes_revoked;
            copied.reason = copied.reason.or(Reason::from_code(argument.reason));
            progress(copied.bytes());
            if argument.length < wanted {
                break;
            }
        }
        if request.direction == CopyDirection::ToImporter {
            argument.flags = copy_flags::SYNC;
            argument.cache_losses = cache_losses;
            argument.length = 0;
            self.copy_piece(&mut argument)?;
        }
        copied.elapsed = begun.elapsed();
        Ok(copied)
    }

    fn copy_piece(&self, argument: &mut DeviceCopy) -> Result<(), Error> {
        self.calls.copy(argument).map_err(|error| Error::command("have the importer copy", &self.name, error))
    }
}
