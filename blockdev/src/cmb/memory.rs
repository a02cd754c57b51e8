//! What windows are made of: memory files of this host, or pieces of the memory that a controller lends.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use peerfs_sys::{Engine, RegisteredWindow};

use super::lent::{LentPiece, LentSpace};
use super::{Form, Shared};
use crate::nvme::PeerMemory;
use crate::{BusPlace, DeviceError, IoBuf, PathKind, WindowError, WindowMemory, WindowSlice};

/// Where the memory of windows comes from.
#[derive(Debug)]
pub(super) enum Source {
    /// Main memory, registered with an io_uring engine.
    Host(Arc<Engine>),
    /// A controller's BAR.
    Controller(Arc<LentSpace>),
}

/// The memory of one window.
#[derive(Debug, Clone)]
pub(super) enum Memory {
    Host(Arc<RegisteredWindow>),
    Controller(Arc<LentPiece>),
}

/// Why a buffer was not copied.
#[derive(Debug)]
pub(super) enum Unmoved {
    /// The memory refused.
    Failed(io::Error),
    /// The memory lost its content: the device has the blocks. The buffer comes back.
    Lost(IoBuf),
}

impl Source {
    /// How bytes are attested that a peer moves through it.
    pub(super) fn path(&self) -> PathKind {
        match self {
            Source::Host(_) => PathKind::DirectWindow,
            Source::Controller(_) => PathKind::DirectBar,
        }
    }

    /// Where it is on the bus.
    pub(super) fn bus(&self) -> Option<BusPlace> {
        match self {
            Source::Host(_) => None,
            Source::Controller(space) => Some(space.bus()),
        }
    }

    /// Another process can be given a window, and lose it again.
    pub(super) fn is_grantable(&self) -> bool {
        matches!(self, Source::Host(_))
    }

    /// Memory for a window whose budget is reserved.
    pub(super) fn allocate(&self, shared: &Shared, length: u64, form: Form) -> Result<Memory, WindowError> {
        match (self, form) {
            (Source::Host(engine), Form::Memfd) => RegisteredWindow::create(engine, length).map(Memory::Host).map_err(|err| {
                // More than the aperture's size may be in the way: what this user locks besides, in all of its processes.
                if matches!(err.raw_os_error(), Some(libc::ENOMEM | libc::ENOSPC)) {
                    tracing::debug!(%err, length, "no memory for a window");
                    return WindowError::Full { needed_bytes: length };
                }
                WindowError::Device(shared.refuse(&format!("no memory for a window of {length} bytes: {err}")))
            }),
            // Whatever it fails for, memory of the other kind is the better answer.
            (Source::Host(engine), Form::DmaBuf) => RegisteredWindow::create_dmabuf(engine, length)
                .map(Memory::Host)
                .map_err(|err| WindowError::Unsupported { reason: format!("/dev/udmabuf: {err}") }),
            (Source::Controller(space), Form::Memfd) => {
                let piece = space.take(length).ok_or(WindowError::Full { needed_bytes: length })?;
                Ok(Memory::Controller(piece))
            }
            (Source::Controller(_), Form::DmaBuf) => Err(WindowError::Unsupported {
                reason: "memory of a BAR needs a kernel that exports it (VFIO, Linux 6.19)".into(),
            }),
        }
    }
}

impl LentPiece {
    fn unless_lost(&self, done: io::Result<()>, buf: IoBuf) -> Result<IoBuf, Unmoved> {
        match done {
            Ok(()) => Ok(buf),
            Err(_) if self.is_lost() => Err(Unmoved::Lost(buf)),
            Err(err) => Err(Unmoved::Failed(err)),
        }
    }
}

impl Memory {
    /// A part of it, as source or target of device I/O.
    pub(super) fn slice(&self, offset: u64, length: u64) -> WindowSlice {
        let memory: Arc<dyn WindowMemory> = match self {
            Memory::Host(window) => Arc::new(HostMemory(window.clone())),
            Memory::Controller(piece) => piece.clone(),
        };
        WindowSlice { memory, offset, length }
    }

    pub(super) fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        match self {
            Memory::Host(window) => window.read(offset, out),
            Memory::Controller(piece) => piece.load(offset, out),
        }
    }

    pub(super) fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        match self {
            Memory::Host(window) => window.write(offset, data),
            Memory::Controller(piece) => piece.store(offset, data),
        }
    }

    /// Fills the whole of `buf`.
    pub(super) fn read_buf(&self, offset: u64, mut buf: IoBuf) -> Result<IoBuf, Unmoved> {
        match self {
            Memory::Host(window) => window.read_buf(offset, buf).map_err(Unmoved::Failed),
            Memory::Controller(piece) => {
                let done = piece.load(offset, &mut buf);
                piece.unless_lost(done, buf)
            }
        }
    }

    /// Copies the whole of `buf`; gives it back.
    pub(super) fn write_buf(&self, offset: u64, buf: IoBuf) -> Result<IoBuf, Unmoved> {
        match self {
            Memory::Host(window) => window.write_buf(offset, buf).map_err(Unmoved::Failed),
            Memory::Controller(piece) => {
                let done = piece.store(offset, &buf);
                piece.unless_lost(done, buf)
            }
        }
    }

    /// It does not hold any more what was put into it, and never will again.
    pub(super) fn is_lost(&self) -> bool {
        match self {
            Memory::Host(_) => false,
            Memory::Controller(piece) => piece.is_lost(),
        }
    }

    /// Where DMA engines of other devices find it.
    pub(super) fn peer_memory(&self, offset: u64, length: u64) -> Option<PeerMemory> {
        match self {
            Memory::Host(_) => None,
            Memory::Controller(piece) => Some(piece.peer_memory(offset, length)),
        }
    }

    /// A descriptor for a process that is to map it.
    pub(super) fn reopen(&self, writable: bool) -> io::Result<OwnedFd> {
        match self {
            Memory::Host(window) => window.reopen(writable),
            Memory::Controller(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// A descriptor for whoever keeps it beyond the life of this process; a BAR is out of reach then by itself.
    pub(super) fn duplicate(&self) -> io::Result<Option<OwnedFd>> {
        match self {
            Memory::Host(window) => window.duplicate().map(Some),
            Memory::Controller(_) => Ok(None),
        }
    }

    /// Somebody outside of this process has it.
    pub(super) fn is_held(&self) -> io::Result<bool> {
        match self {
            Memory::Host(window) => window.is_held(),
            Memory::Controller(_) => Ok(false),
        }
    }

    /// Ends the access of other processes.
    pub(super) fn cut(&self) -> io::Result<()> {
        match self {
            Memory::Host(window) => window.truncate_to_zero(),
            // No process has it.
            Memory::Controller(_) => Ok(()),
        }
    }
}

/// Host memory as the device below sees it.
#[derive(Debug)]
struct HostMemory(Arc<RegisteredWindow>);

impl WindowMemory for HostMemory {
    fn slot_in(&self, engine_id: u64) -> Option<u32> {
        (engine_id == self.0.engine().id()).then(|| self.0.slot())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), DeviceError> {
        let length = out.len() as u64;
        let done = self.0.read(offset, out);
        done.map_err(|err| window_error("read", offset, length, &err))
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        let length = data.len() as u64;
        let done = self.0.write(offset, data);
        done.map_err(|err| window_error("write", offset, length, &err))
    }
}

pub(super) fn window_error(op: &'static str, offset: u64, length: u64, err: &io::Error) -> DeviceError {
    DeviceError::Io { device: "window of the CMB".into(), op, offset, length, errno: crate::ringfile::raw(err) }
}
