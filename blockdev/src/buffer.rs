//! Buffers for device I/O.

use peerfs_sys::AlignedBuf;

/// An owned, block-aligned buffer. A device that registers memory with the
/// kernel hands out registered ones ([`crate::BlockDevice::buffer`]).
pub type IoBuf = AlignedBuf;
