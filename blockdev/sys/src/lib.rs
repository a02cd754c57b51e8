//! The only crate of peerfs that contains `unsafe`: safe wrappers around the
//! kernel interfaces the rest is built on.
//!
//! Memory that another process or a device can change is never handed out as a
//! Rust reference; it is reached by copying calls only.

mod buffer;

pub use buffer::{AlignedBuf, BUFFER_ALIGN};
