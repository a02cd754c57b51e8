//! A file behind an io_uring engine: what the image and the memory device share.

use std::fs::File;
use std::io;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use peerfs_sys::{Direction, Engine, Outcome, Transfer};

use crate::bounce;
use crate::{BlockDevice, DeviceError, DeviceInfo, EventSink, Io, IoBuf, Ticket, WindowSlice};

#[derive(Debug, Clone)]
pub(crate) struct RingFile {
    pub(crate) engine: Arc<Engine>,
    pub(crate) file: Arc<File>,
    pub(crate) info: Arc<DeviceInfo>,
    /// Writes are refused with EROFS.
    pub(crate) read_only: bool,
    /// Contents survive this process: flush has something to do.
    pub(crate) durable: bool,
}

/// What a request is about, for errors.
#[derive(Debug, Clone, Copy)]
struct Span {
    op: &'static str,
    offset: u64,
    length: u64,
}

impl RingFile {
    fn start(&self, io: Io) -> Result<Ticket, DeviceError> {
        let write = io.is_write();
        let span = Span { op: if write { "write" } else { "read" }, offset: io.offset(), length: io.length() };
        self.info.check_range(span.offset, span.length)?;
        if write && self.read_only {
            return Err(self.error(span, libc::EROFS));
        }
        let offset = span.offset;
        let transfer = match io {
            Io::Read { buf, .. } => self.transfer(Direction::Read, offset, buf),
            Io::Write { buf, .. } => self.transfer(Direction::Write, offset, buf),
            Io::FillWindow { window, .. } => match self.window_transfer(Direction::Read, span, &window)? {
                Some(transfer) => transfer,
                None => return self.bounced(bounce::fill_window(self, offset, &window)),
            },
            Io::DrainWindow { window, .. } => match self.window_transfer(Direction::Write, span, &window)? {
                Some(transfer) => transfer,
                None => return self.bounced(bounce::drain_window(self, offset, &window)),
            },
        };
        let device = self.clone();
        Ok(Ticket::new(move || {
            let (outcome, buf) = transfer.wait();
            device.judge(span, outcome).map(|()| buf)
        }))
    }

    fn transfer(&self, direction: Direction, offset: u64, buf: IoBuf) -> Transfer {
        self.engine.submit(direction, &self.file, offset, buf)
    }

    /// Straight between device and window; `None` when the window is not of this engine.
    fn window_transfer(&self, direction: Direction, span: Span, window: &WindowSlice) -> Result<Option<Transfer>, DeviceError> {
        let slot = window.memory.slot_in(self.engine.id());
        let Some(memory) = slot.and_then(|slot| self.engine.window(slot)) else {
            return Ok(None);
        };
        let part = (window.offset, window.length);
        self.engine
            .submit_window(direction, &self.file, span.offset, &memory, part)
            .map(Some)
            .map_err(|err| self.error(span, raw(&err)))
    }

    fn bounced(&self, result: Result<(), DeviceError>) -> Result<Ticket, DeviceError> {
        result.map(|()| Ticket::ready(Ok(None)))
    }

    fn judge(&self, span: Span, outcome: Outcome) -> Result<(), DeviceError> {
        let errno = match outcome.check(span.length) {
            Ok(()) => return Ok(()),
            Err(errno) => errno,
        };
        match (outcome.errno, self.file.metadata()) {
            (None, Ok(now)) if now.is_file() && now.len() < span.offset + span.length => Err(self.truncated(now.len())),
            _ => Err(self.error(span, errno)),
        }
    }

    fn truncated(&self, length: u64) -> DeviceError {
        DeviceError::Unusable {
            device: self.info.name.clone(),
            reason: format!(
                "the image was truncated to {length} bytes while in use: \
                 restore its size of {} bytes, then run fsck",
                self.info.size_bytes
            ),
        }
    }

    fn error(&self, span: Span, errno: i32) -> DeviceError {
        DeviceError::Io { device: self.info.name.clone(), op: span.op, offset: span.offset, length: span.length, errno }
    }

    /// fallocate(2) on a checked range. `Ok(false)`: not supported here.
    fn allocate(&self, span: Span, mode: FallocateFlags) -> Result<bool, DeviceError> {
        self.info.check_range(span.offset, span.length)?;
        if self.read_only {
            return Err(self.error(span, libc::EROFS));
        }
        if span.length == 0 {
            return Ok(true);
        }
        let mode = mode | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        loop {
            return match fallocate(&*self.file, mode, span.offset as i64, span.length as i64) {
                Ok(()) => Ok(true),
                Err(Errno::EINTR) => continue,
                Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::ENODEV) => Ok(false),
                Err(errno) => Err(self.error(span, errno as i32)),
            };
        }
    }
}

impl BlockDevice for RingFile {
    fn info(&self) -> DeviceInfo {
        (*self.info).clone()
    }

    fn buffer(&self, length: usize) -> IoBuf {
        self.engine.buffer(length)
    }

    fn submit(&self, io: Io) -> Ticket {
        self.start(io).unwrap_or_else(|err| Ticket::ready(Err(err)))
    }

    fn flush(&self) -> Result<(), DeviceError> {
        if !self.durable || self.read_only {
            return Ok(());
        }
        let span = Span { op: "flush", offset: 0, length: self.info.size_bytes };
        self.file.sync_data().map_err(|err| self.error(span, raw(&err)))
    }

    fn discard(&self, offset: u64, length: u64) -> Result<(), DeviceError> {
        let span = Span { op: "discard", offset, length };
        match self.allocate(span, FallocateFlags::FALLOC_FL_PUNCH_HOLE)? {
            true => Ok(()),
            false => Err(self.error(span, libc::EOPNOTSUPP)),
        }
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), DeviceError> {
        let span = Span { op: "write", offset, length };
        let mode = if self.durable { FallocateFlags::FALLOC_FL_ZERO_RANGE } else { FallocateFlags::FALLOC_FL_PUNCH_HOLE };
        if self.allocate(span, mode)? {
            return Ok(());
        }
        for (at, length) in bounce::steps(length) {
            let mut buf = self.buffer(length as usize);
            buf.fill(0);
            let offset = offset + at;
            self.submit(Io::Write { offset, buf }).wait()?;
        }
        Ok(())
    }

    fn subscribe(&self, _sink: EventSink) {}
}

/// The error number of an I/O error; EINVAL for one that is not the system's.
pub(crate) fn raw(err: &io::Error) -> i32 {
    err.raw_os_error().unwrap_or(libc::EINVAL)
}

/// Implements [`BlockDevice`] for a struct by its field `file: RingFile`.
macro_rules! delegate {
    ($device:ty) => {
        impl BlockDevice for $device {
            fn info(&self) -> DeviceInfo {
                self.file.info()
            }
            fn buffer(&self, length: usize) -> IoBuf {
                self.file.buffer(length)
            }
            fn submit(&self, io: Io) -> Ticket {
                self.file.submit(io)
            }
            fn flush(&self) -> Result<(), DeviceError> {
                self.file.flush()
            }
            fn discard(&self, offset: u64, length: u64) -> Result<(), DeviceError> {
                self.file.discard(offset, length)
            }
            fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), DeviceError> {
                self.file.write_zeroes(offset, length)
            }
            fn subscribe(&self, sink: EventSink) {
                self.file.subscribe(sink)
            }
        }
    };
}
pub(crate) use delegate;
