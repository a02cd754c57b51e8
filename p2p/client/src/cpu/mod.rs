//! The software importer: a device model whose memory accesses go through its
//! own page table and translation cache.
//!
//! It is the mapping model made executable: an access to an address without a
//! translation faults; the fault maps the file's range; a revocation shoots the
//! translations down before it is acknowledged; the next access faults again.
//! Where the answer is a fallback, the page's accesses go through the filesystem.

mod atomics;
mod device;
mod fault;
pub(crate) mod page_table;
mod stats;
mod translation_cache;

pub use device::{Device, DeviceConfig};
pub use stats::DeviceStats;
