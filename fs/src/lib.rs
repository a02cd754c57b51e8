//! The filesystem: operations, metadata, extents, coherence. The transport
//! adapters are thin: [`fuse`] is one.

pub mod bus;
pub mod coherence;
pub mod control;
pub mod core;
pub mod cpu_cache;
pub mod error;
pub mod fuse;
pub mod limits;
pub mod mapping;
pub mod ops;
pub mod requests;
pub mod server;
pub mod store;
mod sync;
pub mod types;
