//! Block devices and their apertures.
//!
//! [`BlockDevice`] moves blocks; [`Aperture`] lends *windows*: memory through
//! which another process or device reaches blocks without a copy by us. The
//! filesystem above uses only these two traits.

mod aperture;
mod bounce;
mod buffer;
mod cmb;
mod counted;
mod device;
mod error;
mod events;
mod fault;
mod image;
mod lock_holder;
mod lock_wait;
mod loop_device;
mod mapped;
mod mem;
pub mod nvme;
mod opening;
pub mod pci;
mod peer_gate;
mod placed;
mod pmem;
mod ringfile;
mod signature;
mod spec;
mod tail;

pub use aperture::{
    Aperture, ApertureInfo, ApertureKind, BusPlace, MAX_WINDOW_BYTES, PathKind, Peer, PeerPart, Run, Window, WindowContent,
    WindowError, WindowSpec,
};
pub use bounce::{drain_window, fill_window};
pub use buffer::IoBuf;
pub use cmb::Cmb;
pub use counted::{CountedDevice, IoCount, IoCounters};
pub use device::{
    BLOCK_BYTES, BlockDevice, BlockDeviceExt, DeviceEvent, DeviceInfo, EventSink, Io, Ticket, WindowMemory, WindowSlice,
};
pub use error::DeviceError;
pub use events::DeviceEvents;
pub use fault::{Effect, FaultDevice, FaultRule, Hold, OpCounts, OpKind, Trigger};
pub use image::ImageDevice;
pub use mapped::{BlockMemory, MappedAperture, MappedDevice};
pub use mem::MemDevice;
pub use opening::OpenMode;
pub use peerfs_sys::Engine;
pub use pmem::{Medium, PmemDevice};
pub use signature::{Content, VOLUME_MAGIC, existing_content};
pub use spec::{DeviceSpec, NvmePart, Opened, OpenedForServing, SpecError, parse_size};
