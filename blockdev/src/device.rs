//! The block device seam.

use std::fmt;
use std::sync::Arc;

use crate::{DeviceError, IoBuf};

/// Unit of allocation and of every transfer, in bytes.
pub const BLOCK_BYTES: u64 = 4096;

/// What a device is, for `info` and for messages.
#[derive(Debug, Clone)]
pub struct DeviceInfo {
    /// As the user named it, for example `image:/srv/vol.img`.
    pub name: String,
    /// Backend: `image`, `mem`, ...
    pub backend: &'static str,
    /// Capacity in bytes, a multiple of [`BLOCK_BYTES`].
    pub size_bytes: u64,
    /// Transfers bypass the host's page cache (O_DIRECT).
    pub direct_io: bool,
}

/// What a device reports on its own initiative.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceEvent {
    /// The device is being reset: apertures lost their mappings, and get none before somebody says that it works again.
    Reset,
    /// The device was reset and works again: apertures lost their mappings, and may get new ones.
    Recovered,
    /// The device is gone.
    Removed,
    /// These bytes cannot be read or written any more.
    MediaError {
        /// Byte offset on the device.
        offset: u64,
        /// Length in bytes.
        length: u64,
    },
}

/// Receives device events; called on any thread, must not block.
pub type EventSink = Arc<dyn Fn(DeviceEvent) + Send + Sync>;

/// Memory of an aperture window as a source or target of device I/O.
///
/// The daemon never dereferences it: a client may take it away at any moment.
/// Implementations move bytes with calls that fail instead of faulting.
pub trait WindowMemory: Send + Sync + fmt::Debug {
    /// Registered-buffer slot, if it is registered with the I/O engine of this id; a device on another engine bounces.
    fn slot_in(&self, _engine_id: u64) -> Option<u32> {
        None
    }
    /// Copy out of the window. `offset` in bytes from its start.
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), DeviceError>;
    /// Copy into the window.
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError>;
    /// Where the window starts in the memory that a controller lends, if it is the one with this id.
    fn controller_offset(&self, _controller_memory: u64) -> Option<u64> {
        None
    }
}

/// Part of a window's memory.
#[derive(Debug, Clone)]
pub struct WindowSlice {
    /// The window.
    pub memory: Arc<dyn WindowMemory>,
    /// Byte offset inside the window.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
}

/// One request. Offsets and lengths are multiples of [`BLOCK_BYTES`]. The
/// request owns its buffer until the ticket gives it back.
#[derive(Debug)]
pub enum Io {
    /// Device to memory; the length is the buffer's.
    Read {
        /// Byte offset on the device.
        offset: u64,
        /// Target.
        buf: IoBuf,
    },
    /// Memory to device.
    Write {
        /// Byte offset on the device.
        offset: u64,
        /// Source.
        buf: IoBuf,
    },
    /// Device straight into a window.
    FillWindow {
        /// Byte offset on the device.
        offset: u64,
        /// Target.
        window: WindowSlice,
    },
    /// A window straight to the device.
    DrainWindow {
        /// Byte offset on the device.
        offset: u64,
        /// Source.
        window: WindowSlice,
    },
}

/// A request under way. Dropping it does not cancel the request: the drop waits for its end.
pub struct Ticket(Option<Finish>);

type Finish = Box<dyn FnOnce() -> Result<Option<IoBuf>, DeviceError> + Send>;

impl Ticket {
    /// A ticket whose result is computed or waited for by `wait`, which runs exactly once.
    pub fn new(wait: impl FnOnce() -> Result<Option<IoBuf>, DeviceError> + Send + 'static) -> Self {
        Ticket(Some(Box::new(wait)))
    }

    /// A ticket that is complete already.
    pub fn ready(result: Result<Option<IoBuf>, DeviceError>) -> Self {
        Ticket::new(move || result)
    }

    /// Blocks until the request is complete. Gives the buffer back for
    /// [`Io::Read`] and [`Io::Write`], `None` for window transfers.
    pub fn wait(mut self) -> Result<Option<IoBuf>, DeviceError> {
        self.0.take().map_or(Ok(None), |finish| finish())
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(finish) = self.0.take()
            && let Err(error) = finish()
        {
            tracing::warn!(%error, "a request that nobody waited for failed");
        }
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ticket")
    }
}

/// A device that stores blocks. All methods may be called from any thread.
pub trait BlockDevice: Send + Sync + fmt::Debug {
    /// What it is.
    fn info(&self) -> DeviceInfo;
    /// A buffer of `length` bytes (rounded up to blocks), the best kind for this device. Contents are undefined but initialised.
    fn buffer(&self, length: usize) -> IoBuf;
    /// Starts a request. Several may be under way; there is no order among them.
    fn submit(&self, io: Io) -> Ticket;
    /// Makes every write that completed before this call durable.
    fn flush(&self) -> Result<(), DeviceError>;
    /// Tells the device that a range holds nothing of value. Its content is undefined afterwards. EOPNOTSUPP where the
    /// device has no use for that.
    fn discard(&self, offset: u64, length: u64) -> Result<(), DeviceError>;
    /// Fills a range with zeros.
    fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), DeviceError>;
    /// Registers for events. Devices that never report anything ignore it.
    fn subscribe(&self, sink: EventSink);
}

impl Io {
    /// Byte offset on the device.
    pub fn offset(&self) -> u64 {
        match self {
            Io::Read { offset, .. }
            | Io::Write { offset, .. }
            | Io::FillWindow { offset, .. }
            | Io::DrainWindow { offset, .. } => *offset,
        }
    }

    /// Length in bytes.
    pub fn length(&self) -> u64 {
        match self {
            Io::Read { buf, .. } | Io::Write { buf, .. } => buf.len() as u64,
            Io::FillWindow { window, .. } | Io::DrainWindow { window, .. } => window.length,
        }
    }

    /// Changes the device.
    pub fn is_write(&self) -> bool {
        matches!(self, Io::Write { .. } | Io::DrainWindow { .. })
    }
}

impl DeviceInfo {
    /// The range is block aligned and inside the device.
    ///
    /// # Errors
    /// [`DeviceError::BadRange`] if it is not.
    pub fn check_range(&self, offset: u64, length: u64) -> Result<(), DeviceError> {
        let inside = offset.checked_add(length).is_some_and(|end| end <= self.size_bytes);
        let aligned = offset.is_multiple_of(BLOCK_BYTES) && length.is_multiple_of(BLOCK_BYTES);
        if inside && aligned {
            return Ok(());
        }
        Err(DeviceError::BadRange { device: self.name.clone(), offset, length })
    }
}

/// Blocking conveniences on top of [`BlockDevice::submit`].
pub trait BlockDeviceExt: BlockDevice {
    /// Reads block-aligned `out`.
    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<(), DeviceError> {
        let buf = self.buffer(out.len());
        let buf = self.submit(Io::Read { offset, buf }).wait()?;
        if let Some(buf) = buf {
            out.copy_from_slice(&buf[..out.len()]);
        }
        Ok(())
    }

    /// Writes block-aligned `data`.
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        let mut buf = self.buffer(data.len());
        buf[..data.len()].copy_from_slice(data);
        self.submit(Io::Write { offset, buf }).wait()?;
        Ok(())
    }
}

impl<T: BlockDevice + ?Sized> BlockDeviceExt for T {}
