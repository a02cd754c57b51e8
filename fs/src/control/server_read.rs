//! The ioctl that has the importer inside the server read a range.

use peerfs_abi::ioctl::{READ_BY_SERVER_MAX, ReadByServer};
use peerfs_abi::{MapFlags, Reason};
use peerfs_p2p::{CacheProbe, MapRequest, Range, ServerReadError, read_through_server};

use super::device_copy::inside_error;
use super::ioctl::{Call, check_version, invalid, map_error};
use super::names::{is_virtual, object};
use crate::error::{FsError, Result};
use crate::ops::Operations;

impl Call<'_> {
    pub(super) fn read_by_server(&self, mut argument: ReadByServer) -> Result<ReadByServer> {
        check_version(argument.abi_version)?;
        if is_virtual(self.ino) {
            return Err(FsError::errno(libc::ENOTTY));
        }
        if !self.access().is_some_and(|access| access.0) {
            return Err(FsError::errno(libc::EACCES));
        }
        if argument.file_fd < 0 {
            return Err(FsError::errno(libc::EBADF));
        }
        let end = argument.offset.checked_add(argument.length);
        let Some(end) = end.filter(|_| (1..=READ_BY_SERVER_MAX).contains(&argument.length)) else { return invalid() };
        let request = MapRequest {
            object: object(self.ino),
            range: Range { start: argument.offset, end },
            flags: MapFlags::empty(),
            handle_writable: false,
            uid: self.caller.uid,
            cache_probe: Some(CacheProbe { tid: self.caller.tid, fd: argument.file_fd }),
        };
        let probe = request.cache_probe;
        let mut crc32c = argument.crc32c;
        let mut length = 0;
        let moved = read_through_server(
            &self.control.engine,
            &request,
            |offset, buffer| self.read_directly(probe, offset, buffer),
            |bytes| {
                crc32c = crc32c::crc32c_append(crc32c, bytes);
                length += bytes.len() as u64;
            },
        );
        let moved = moved.map_err(|error| match error {
            ServerReadError::Map(error) => map_error(&error),
            ServerReadError::Session(error) => inside_error(&error),
            ServerReadError::Fallback(error) => error,
        })?;
        argument.crc32c = crc32c;
        argument.length = length;
        argument.reason = main_reason(&moved.fallback).map_or(0, Reason::code);
        argument.bytes_direct_window = moved.direct_window;
        argument.bytes_direct_bar = moved.direct_bar;
        argument.bytes_fallback = moved.fallback_total();
        Ok(argument)
    }

    /// As a read of a direct handle: past the page cache, but after what programs stored through mappings. Pages that hold
    /// nothing new stay.
    pub(super) fn read_directly(&self, probe: Option<CacheProbe>, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let range = Range::new(offset, buffer.len() as u64);
        let state = probe.map(|probe| self.control.cache.state(self.ino, range, probe));
        if !matches!(state, Some(Ok(state)) if state.dirty == 0) {
            self.drop_pages(self.ino, range)?;
        }
        let data = self.control.core.read(self.handle, offset, buffer.len() as u32, false)?;
        buffer[..data.len()].copy_from_slice(&data);
        Ok(data.len())
    }
}

/// That of the most bytes.
pub(super) fn main_reason(fallback: &[u64]) -> Option<Reason> {
    let (slot, _) = fallback.iter().enumerate().filter(|(_, bytes)| **bytes > 0).max_by_key(|(_, bytes)| **bytes)?;
    Reason::from_slot(slot)
}
