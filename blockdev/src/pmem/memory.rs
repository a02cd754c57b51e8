//! The memory itself, and what an access that did not succeed means.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use peerfs_sys::PersistentMapping;

use crate::ringfile::raw;
use crate::{BLOCK_BYTES, BlockMemory, DeviceError, DeviceEvent, DeviceEvents, PathKind};

use super::Mapped;

/// Blocks in a mapped file or device.
#[derive(Debug)]
pub(super) struct PmemMemory {
    name: String,
    file: File,
    mapping: PersistentMapping,
    /// read(2), write(2) and fdatasync(2) work on it.
    is_file: bool,
    events: Arc<DeviceEvents>,
}

/// What an access was about, for errors.
#[derive(Clone, Copy)]
struct Span {
    op: &'static str,
    offset: u64,
    length: u64,
}

impl PmemMemory {
    pub(super) fn new(name: String, mapped: Mapped, events: Arc<DeviceEvents>) -> Self {
        let Mapped { file, mapping, is_file } = mapped;
        PmemMemory { name, file, mapping, is_file, events }
    }

    fn place(&self, span: Span) -> Result<usize, DeviceError> {
        let inside = span.offset.checked_add(span.length).is_some_and(|end| end <= self.length());
        // The mapping's length is a usize.
        if inside { Ok(span.offset as usize) } else { Err(self.error(span, libc::EINVAL)) }
    }

    /// Memory of the range cannot be reached: says why, and reports what is lost.
    fn explain(&self, span: Span) -> DeviceError {
        if let Some(length) = self.truncated(span) {
            let lost = span.offset.max(length);
            self.report(lost, span.offset + span.length - lost);
            return DeviceError::Unusable {
                device: self.name.clone(),
                reason: format!(
                    "the file was truncated to {length} bytes while in use: \
                     restore its size of {} bytes, then run fsck",
                    self.length()
                ),
            };
        }
        let bad = self.report_bad_blocks(span);
        if bad == 0 && span.op == "write" {
            // It can be read, so what is missing is a place to write it to.
            return self.error(span, libc::ENOSPC);
        }
        self.error(span, libc::EIO)
    }

    /// The length of the file, if the range is not all in it any more.
    fn truncated(&self, span: Span) -> Option<u64> {
        let now = self.file.metadata().ok().filter(std::fs::Metadata::is_file)?;
        (now.len() < span.offset + span.length).then_some(now.len())
    }

    /// Looks for the blocks of a range that cannot be read, reports them and gives their number.
    fn report_bad_blocks(&self, span: Span) -> usize {
        let first = span.offset / BLOCK_BYTES * BLOCK_BYTES;
        let blocks = (first..span.offset + span.length).step_by(BLOCK_BYTES as usize);
        let mut block = [0; BLOCK_BYTES as usize];
        let bad: Vec<u64> = blocks.filter(|at| self.copy_out(*at, &mut block).is_err()).collect();
        for at in &bad {
            self.report(*at, BLOCK_BYTES);
        }
        bad.len()
    }

    /// Reads by the mapping or, where a sparse file has no room for the page, by read(2), which needs none.
    fn copy_out(&self, offset: u64, out: &mut [u8]) -> Result<(), i32> {
        if self.mapping.read(offset as usize, out).is_ok() {
            return Ok(());
        }
        if !self.is_file {
            return Err(libc::EIO);
        }
        self.file.read_exact_at(out, offset).map_err(|err| err.raw_os_error().unwrap_or(libc::EIO))
    }

    fn report(&self, offset: u64, length: u64) {
        tracing::error!(device = self.name, offset, length, "this memory cannot be read or written any more");
        self.events.report(&DeviceEvent::MediaError { offset, length });
    }

    fn error(&self, span: Span, errno: i32) -> DeviceError {
        DeviceError::Io { device: self.name.clone(), op: span.op, offset: span.offset, length: span.length, errno }
    }
}

impl BlockMemory for PmemMemory {
    fn length(&self) -> u64 {
        self.mapping.length() as u64
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), DeviceError> {
        let span = Span { op: "read", offset, length: out.len() as u64 };
        self.place(span)?;
        self.copy_out(offset, out).map_err(|_| self.explain(span))
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        let span = Span { op: "write", offset, length: data.len() as u64 };
        let place = self.place(span)?;
        self.mapping.write(place, data).map_err(|_| self.explain(span))
    }

    fn barrier(&self) -> Result<(), DeviceError> {
        if self.mapping.is_dax() {
            // Each write was flushed and fenced by who made it; MAP_SYNC keeps the file's own metadata durable.
            return Ok(());
        }
        let span = Span { op: "flush", offset: 0, length: self.length() };
        self.file.sync_data().map_err(|err| self.error(span, raw(&err)))
    }

    fn persist(&self, offset: u64, length: u64) -> Result<(), DeviceError> {
        let span = Span { op: "flush", offset, length };
        let place = self.place(span)?;
        self.mapping.persist(place, length as usize).map_err(|_| self.explain(span))?;
        self.barrier()
    }

    fn path(&self) -> PathKind {
        // It is the machine's memory, not a device's BAR.
        PathKind::DirectWindow
    }
}
