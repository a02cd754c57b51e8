//! The aperture seam: windows through which blocks are reached directly.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::nvme::PeerMemory;
use crate::pci::PciAddress;
use crate::{BLOCK_BYTES, DeviceError, DeviceInfo};

/// Most bytes in one window: what the kernel registers in one slot.
pub const MAX_WINDOW_BYTES: u64 = 1 << 30;

/// How blocks relate to aperture memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ApertureKind {
    /// The block's permanent home is aperture memory.
    Identity,
    /// A window holds the block while it is mapped.
    Windowed,
}

/// The name under which bytes moved through this aperture are attested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathKind {
    /// A device's PCI BAR.
    DirectBar,
    /// Memory of the machine: a software aperture, or persistent memory.
    DirectWindow,
}

/// Where memory in a BAR is on the bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BusPlace {
    /// The function whose BAR it is.
    pub address: PciAddress,
    /// 0 to 5.
    pub bar: u8,
    /// First byte inside the BAR.
    pub offset: u64,
    /// Length, bytes.
    pub length: u64,
}

/// State of an aperture, for decisions and for `info`.
#[derive(Debug, Clone)]
pub struct ApertureInfo {
    /// For people, for example `software CMB`.
    pub name: String,
    /// Identity or windowed.
    pub kind: ApertureKind,
    /// Attestation label.
    pub path: PathKind,
    /// Bytes that may be lent at one time.
    pub capacity_bytes: u64,
    /// Bytes lent now.
    pub used_bytes: u64,
    /// Windows now.
    pub windows: u64,
    /// Page size the kernel backs windows with, in bytes (2 MiB where huge pages are in use).
    pub page_bytes: u64,
    /// A peer may write through it.
    pub writable: bool,
    /// A peer may use atomic operations on it.
    pub atomic: bool,
    /// Windows can be handed to other processes and taken back ([`Window::grant_fd`]). Otherwise only what runs beside
    /// the aperture, in its own process, can use them.
    pub grantable: bool,
    /// Where it is on the bus; `None` if it is in no BAR.
    pub bus: Option<BusPlace>,
}

/// A run of device blocks and its place in a window. All block aligned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Byte offset inside the window.
    pub window_offset: u64,
    /// Byte offset on the device.
    pub device_offset: u64,
    /// Length in bytes.
    pub length: u64,
}

/// What a new window is to hold. Bytes of the window outside `runs` read as zeros.
#[derive(Debug, Clone)]
pub struct WindowSpec {
    /// The file the blocks belong to; a window never holds blocks of two.
    pub owner: u64,
    /// Size of the window in bytes, a multiple of 4096.
    pub length: u64,
    /// Blocks, sorted by window offset, without overlap.
    pub runs: Vec<Run>,
    /// Bytes at and after this window offset lie beyond the end of the file:
    /// zeros on fill and on write-back.
    pub valid_length: u64,
}

impl WindowSpec {
    /// The runs are blocks of this device, and lie in the window one behind the other.
    pub(crate) fn check(&self, device: &DeviceInfo) -> Result<(), DeviceError> {
        let refuse = |reason: &str| DeviceError::Unusable { device: device.name.clone(), reason: reason.into() };
        let mut end = 0;
        for run in &self.runs {
            device.check_range(run.device_offset, run.length)?;
            let sorted = run.window_offset >= end && run.length > 0;
            end = run.window_offset.saturating_add(run.length);
            if !sorted || !run.window_offset.is_multiple_of(BLOCK_BYTES) || end > self.length {
                return Err(refuse("the runs of a window overlap or leave it"));
            }
        }
        let sized = self.length > 0 && self.length <= MAX_WINDOW_BYTES;
        if !sized || !self.length.is_multiple_of(BLOCK_BYTES) {
            return Err(refuse("a window has 4096 bytes to 1 GiB, in blocks"));
        }
        Ok(())
    }
}

/// Why no window could be made.
#[derive(Debug, thiserror::Error)]
pub enum WindowError {
    /// The budget is spent; evicting `needed_bytes` would make room.
    #[error("the aperture is full: {needed_bytes} more bytes are needed")]
    Full {
        /// Bytes short.
        needed_bytes: u64,
    },
    /// Blocks of the request are in another window already.
    #[error("blocks at device offset {device_offset} are in another window")]
    Overlap {
        /// First such block.
        device_offset: u64,
    },
    /// No such window can be made here; one of another kind may.
    #[error("no dma-buf: {reason}")]
    Unsupported {
        /// What is missing.
        reason: String,
    },
    /// The device failed while the window was filled, or memory ran out.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// A part of a window and where DMA engines find it.
#[derive(Debug, Clone)]
pub struct PeerPart {
    /// Byte offset inside the window.
    pub window_offset: u64,
    /// The memory.
    pub memory: PeerMemory,
}

/// A DMA engine's access to a window.
pub trait Peer: Send + Sync + fmt::Debug {
    /// Ends it, whatever the engine is doing: no transfer under way lands once this returns. Called more than once.
    fn sever(&self);
}

/// What the memory of a window holds between two losses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowContent(pub u64);

/// A live window. Dropping the handle without [`Window::cut`] cuts and writes back.
///
/// Order of a revocation: [`Window::cut`], then [`Window::write_back`]. While
/// the window is in the aperture (also between the two) it is the authoritative
/// copy of its blocks: the block device serves reads and writes from it.
pub trait Window: Send + Sync + fmt::Debug {
    /// Size in bytes.
    fn length(&self) -> u64;
    /// Blocks it holds.
    fn runs(&self) -> &[Run];
    /// The object to hand over: a new descriptor of the window's memfd, opened read-only or
    /// read-write, that no holder can seal, resize beyond its own harm, or reopen with more access.
    fn grant_fd(&self, writable: bool) -> Result<OwnedFd, DeviceError>;
    /// A duplicate of our own descriptor, for whoever keeps the window on our behalf: it is no holder ([`Window::is_held`]).
    /// `None`: nobody reaches the window once this process has ended.
    fn custody_fd(&self) -> Result<Option<OwnedFd>, DeviceError> {
        self.grant_fd(true).map(Some)
    }
    /// A copy out of the window by a peer inside this process. `offset` in bytes from its start.
    ///
    /// # Errors
    /// The window was cut: nothing of `out` counts. The range leaves it, or the device does not answer.
    fn peer_read(&self, _offset: u64, _out: &mut [u8]) -> Result<(), DeviceError> {
        Err(no_peers_inside())
    }
    /// A copy into the window by a peer inside this process, as [`Window::peer_read`]. [`Window::set_writable`] comes first.
    ///
    /// # Errors
    /// As [`Window::peer_read`].
    fn peer_write(&self, _offset: u64, _data: &[u8]) -> Result<(), DeviceError> {
        Err(no_peers_inside())
    }
    /// Where DMA engines of other devices find it, sorted by offset; `None`: it is in no device's BAR.
    fn peer_parts(&self) -> Option<Vec<PeerPart>> {
        None
    }
    /// Has the cut end the access of a DMA engine too; it ends by itself when the peer is dropped. `false`: the window was
    /// cut before.
    fn admit(&self, _peer: &Arc<dyn Peer>) -> bool {
        false
    }
    /// DMA engines have been admitted: the cut may have to wait for them.
    fn has_engines(&self) -> bool {
        false
    }
    /// The content as of now: what a DMA engine moves counts if the window has kept it afterwards.
    fn content(&self) -> WindowContent {
        WindowContent(0)
    }
    /// The memory was there, and held the window's blocks, all the time since.
    fn has_kept(&self, _content: WindowContent) -> bool {
        true
    }
    /// Somebody has the window's memory open or mapped, in whatever process, or imported. What cannot tell says yes.
    fn is_held(&self) -> bool {
        true
    }
    /// The memory is a dma-buf: [`Window::cut`] has no power over it, and [`Window::write_back`] only ends its
    /// authority; the capacity comes back when the handle is dropped, which should wait for the last holder.
    fn is_dmabuf(&self) -> bool {
        false
    }
    /// Blocks at these window offsets (whole blocks) are no longer the owner's: the end of the file does not move over
    /// them, and they are not copied to the device any more, unless the window is their home: then another file that
    /// shares them has them nowhere else. Never waits for I/O.
    fn disown(&self, _offsets: &[std::ops::Range<u64>]) {}
    /// A peer may write from now on: contents can change without us, so write-back has to copy everything.
    fn set_writable(&self);
    /// Moves the end of the file inside the window (see [`WindowSpec::valid_length`]).
    fn set_valid_length(&self, valid_length: u64);
    /// Copies what a peer may have written to the device; the window stays live.
    fn flush(&self) -> Result<(), DeviceError>;
    /// Ends every access by anybody, at once and for good. Cannot fail: where the kernel refuses, the process aborts
    /// rather than let two authorities exist.
    fn cut(&self);
    /// After the cut: writes the last contents to the device and gives the capacity back. On an error the
    /// window stays authoritative and the call may be repeated.
    fn write_back(&self) -> Result<(), DeviceError>;
}

fn no_peers_inside() -> DeviceError {
    DeviceError::Unusable { device: "window".into(), reason: "peers inside the server cannot reach it".into() }
}

/// A device's aperture.
pub trait Aperture: Send + Sync + fmt::Debug {
    /// Its state.
    fn info(&self) -> ApertureInfo;
    /// Makes a window and fills it from the device.
    fn open_window(&self, spec: WindowSpec) -> Result<Arc<dyn Window>, WindowError>;
    /// As [`Aperture::open_window`], as a dma-buf.
    ///
    /// # Errors
    /// [`WindowError::Unsupported`] where aperture or kernel know no such thing.
    fn open_dmabuf(&self, _spec: WindowSpec) -> Result<Arc<dyn Window>, WindowError> {
        Err(WindowError::Unsupported { reason: "this aperture hands out no dma-bufs".into() })
    }
}
