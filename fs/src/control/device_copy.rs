//! The ioctl that has an importer of the server copy a range of a file.

use std::sync::Arc;

use peerfs_abi::ioctl::{COPY_MAX, DeviceCopy, copy_flags};
use peerfs_abi::{MapFlags, Reason};
use peerfs_p2p::{
    CacheProbe, CopyCall, CopyDirection, CopyError, FileBytes, Importer, InsideError, MapRequest, NvmeImporter, REVOKED, Range,
};
use serde_json::{Value, json};

use super::Control;
use super::ioctl::{Call, bind_error, check_version, importer_name, invalid, map_error, session_error};
use super::names::{is_virtual, object};
use super::server_read::main_reason;
use crate::error::{FsError, Result};
use crate::ops::Operations;
use crate::types::WriteOrigin;

impl Control {
    /// The importer of this name, as it is decided for.
    pub(super) fn own_importer(&self, name: &str) -> Option<Importer> {
        self.importer_named(name).map(|importer| importer.importer())
    }

    /// What the server drives, for `info.json`.
    pub(super) fn importers_report(&self) -> Value {
        let report = |importer: &Arc<NvmeImporter>| {
            let engine = importer.engine();
            json!({
                "name": importer.name(),
                "namespace": engine.name(),
                "block_bytes": engine.block_bytes(),
                "blocks": engine.blocks(),
                "transfers_in_flight": importer.in_flight(),
            })
        };
        self.importers.iter().map(report).collect()
    }

    fn importer_named(&self, name: &str) -> Option<&Arc<NvmeImporter>> {
        self.importers.iter().find(|importer| importer.name() == name)
    }
}

/// The file as a direct handle sees it.
struct Bytes<'a> {
    call: &'a Call<'a>,
    probe: Option<CacheProbe>,
}

impl FileBytes for Bytes<'_> {
    type Error = FsError;

    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        self.call.read_directly(self.probe, offset, buffer)
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        let Call { control, caller, handle, .. } = self.call;
        let mut done = 0;
        while done < data.len() {
            let at = offset + done as u64;
            match control.core.write(*caller, *handle, at, &data[done..], WriteOrigin::default())? {
                0 => return Err(FsError::errno(libc::ENOSPC)),
                count => done += count as usize,
            }
        }
        Ok(())
    }
}

impl Call<'_> {
    pub(super) fn copy(&self, mut argument: DeviceCopy) -> Result<DeviceCopy> {
        check_version(argument.abi_version)?;
        self.control.owner_only(self.caller)?;
        if is_virtual(self.ino) {
            return Err(FsError::errno(libc::ENOTTY));
        }
        if argument.flags & !(copy_flags::FROM_IMPORTER | copy_flags::SYNC) != 0 || argument.length > COPY_MAX {
            return invalid();
        }
        let name = importer_name(&argument.importer)?;
        let importer = self.control.importer_named(&name).ok_or(FsError::errno(libc::ENXIO))?;
        argument.block_bytes = importer.engine().block_bytes() as u32;
        let into_file = argument.flags & copy_flags::FROM_IMPORTER != 0;
        if argument.length > 0 {
            self.copy_range(&mut argument, importer, into_file)?;
        }
        if argument.flags & copy_flags::SYNC != 0 {
            let synced = importer.engine().sync(argument.cache_losses.into());
            synced.map_err(|error| FsError::with_context(error.errno(), error.to_string()))?;
        }
        argument.cache_losses = importer.engine().cache_losses() as u32;
        Ok(argument)
    }

    fn copy_range(&self, argument: &mut DeviceCopy, importer: &Arc<NvmeImporter>, into_file: bool) -> Result<()> {
        if !self.access().is_some_and(|(read, write)| read && (write || !into_file)) {
            return Err(FsError::errno(libc::EACCES));
        }
        if argument.file_fd < 0 {
            return Err(FsError::errno(libc::EBADF));
        }
        let Some(end) = argument.offset.checked_add(argument.length) else { return invalid() };
        let range = Range { start: argument.offset, end: if into_file { end } else { end.min(self.size()?) } };
        if !range.start.is_multiple_of(importer.engine().block_bytes()) {
            return invalid();
        }
        let request = MapRequest {
            object: object(self.ino),
            range,
            flags: if into_file { MapFlags::WRITE } else { MapFlags::empty() },
            handle_writable: into_file,
            uid: self.caller.uid,
            cache_probe: Some(CacheProbe { tid: self.caller.tid, fd: argument.file_fd }),
        };
        let direction = if into_file { CopyDirection::FromImporter } else { CopyDirection::ToImporter };
        let call = CopyCall { request: &request, direction, first_block: argument.block };
        if into_file {
            // What programs stored through mappings comes first.
            self.drop_pages(self.ino, range)?;
        }
        let moved = peerfs_p2p::copy(&self.control.engine, importer, &call, Bytes { call: self, probe: request.cache_probe });
        if into_file {
            // Also after a failure, which may have come half-way; and pages may have been read meanwhile.
            self.drop_pages(self.ino, range)?;
            self.control.cache.invalidate_attributes(self.ino);
        }
        let moved = moved.map_err(|error| copy_error(&error))?;
        let mut refused = moved.fallback;
        refused[REVOKED] = 0;
        argument.bytes_direct_window = moved.direct_window;
        argument.bytes_direct_bar = moved.direct_bar;
        argument.bytes_fallback = moved.fallback_total();
        argument.bytes_revoked = moved.fallback[REVOKED];
        argument.reason = main_reason(&refused).map_or(0, Reason::code);
        argument.length = moved.direct() + moved.fallback_total();
        Ok(())
    }

    fn size(&self) -> Result<u64> {
        self.control.core.attr(self.ino).map(|attr| attr.size)
    }
}

pub(super) fn inside_error(error: &InsideError) -> FsError {
    match error {
        InsideError::Session(error) => session_error(error),
        InsideError::Bind(error) => bind_error(error),
    }
}

fn copy_error(error: &CopyError<FsError>) -> FsError {
    let with = |errno: i32| FsError::with_context(errno, error.to_string());
    match error {
        CopyError::Range => with(libc::ERANGE),
        CopyError::Map(error) => map_error(error),
        CopyError::Session(error) => inside_error(error),
        CopyError::Queue(error) => with(error.errno()),
        CopyError::Importer(error) => with(error.errno()),
        CopyError::File(error) => error.clone(),
    }
}
