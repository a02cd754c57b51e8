//! The filesystem: operations, metadata, extents, coherence. The transport
//! adapters are thin: `fuse` is one.

pub mod coherence;
pub mod error;
pub mod ops;
pub mod types;

pub mod store;
