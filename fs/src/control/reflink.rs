//! The ioctl that clones: the page cache, which file operations do not see, is put in order around it.

use peerfs_abi::ioctl::{Reflink, reflink};
use peerfs_p2p::Range;

use super::ioctl::{Call, check_version, invalid};
use crate::core::CloneRange;
use crate::error::{FsError, Result};
use crate::types::Ino;

impl Call<'_> {
    pub(super) fn reflink(&self, mut argument: Reflink) -> Result<Reflink> {
        check_version(argument.abi_version)?;
        let core = &self.control.core;
        if core.attr(self.ino).is_ok_and(|attr| attr.mode & libc::S_IFMT == libc::S_IFDIR) {
            return Err(FsError::errno(libc::EISDIR));
        }
        let handle = core.handle_info(self.handle).filter(|handle| handle.ino == self.ino);
        let handle = handle.ok_or(FsError::errno(libc::EBADF))?;
        match argument.operation {
            reflink::NAME_SOURCE => argument.source_name = core.name_source(self.handle)?,
            // Before pages are dropped, which a reader must not be able to ask for.
            reflink::CLONE if !handle.write => return Err(FsError::errno(libc::EBADF)),
            reflink::CLONE => argument.length = self.clone_range(&argument)?,
            _ => return invalid(),
        }
        Ok(argument)
    }

    fn clone_range(&self, argument: &Reflink) -> Result<u64> {
        let core = &self.control.core;
        let source = core.named_source(argument.source_name).ok_or(FsError::errno(libc::EXDEV))?;
        let range = CloneRange {
            source_offset: argument.source_offset,
            destination_offset: argument.destination_offset,
            length: argument.length,
        };
        let to_end = |offset: u64| match argument.length {
            0 => Range { start: offset, end: u64::MAX },
            length => Range { start: offset, end: offset.saturating_add(length) },
        };
        // What programs stored through mappings of the source belongs to the clone.
        self.drop_pages(source, to_end(range.source_offset))?;
        self.drop_pages(self.ino, to_end(range.destination_offset))?;
        let cloned = core.reflink(self.caller, self.handle, argument.source_name, range);
        // Also after a failure, which may have come half-way; and pages may have been read meanwhile.
        self.drop_pages(self.ino, to_end(range.destination_offset))?;
        self.control.cache.invalidate_attributes(self.ino);
        cloned
    }

    pub(super) fn drop_pages(&self, ino: Ino, range: Range) -> Result<()> {
        self.control.cache.invalidate(ino, range).map_err(|error| {
            FsError::with_context(libc::EIO, format!("cached pages of inode {ino} could not be written back: {error}"))
        })
    }
}
