//! Messages of the grant socket, for servers that may not use FUSE passthrough.
//!
//! A SOCK_SEQPACKET Unix socket: one [`Request`] with SCM_CREDENTIALS, one
//! [`Reply`], which carries the descriptor in SCM_RIGHTS when `error` is 0.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// First field of every message.
pub const MAGIC: u32 = 0x7046_5331;

/// Asks for the descriptor of a grant.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Request {
    /// [`MAGIC`].
    pub magic: u32,
    /// [`crate::ABI_VERSION`].
    pub abi_version: u32,
    /// The grant, as answered by `MAP` or `CONTEXT`.
    pub grant_id: u64,
}

/// The answer.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Reply {
    /// [`MAGIC`].
    pub magic: u32,
    /// 0, or an error number (errno.h).
    pub error: u32,
    /// The grant asked for.
    pub grant_id: u64,
}

const _: () = assert!(size_of::<Request>() == 16 && size_of::<Reply>() == 16);
