//! One file per command.

pub mod bench;
pub mod check_metadata;
pub mod conformance;
pub mod copy;
#[cfg(feature = "cuda")]
pub mod cuda;
#[cfg(not(feature = "cuda"))]
#[path = "without_cuda.rs"]
pub mod cuda;
pub mod devmem;
pub mod fsck;
pub mod generate;
pub mod guardian;
pub mod importers;
pub mod info;
pub mod map;
pub mod mappings;
pub mod mkfs;
pub mod mount;
pub mod nvme;
pub mod query;
pub mod reflink;
pub mod remount;
pub mod revoke;
mod same_address;
pub mod server_info;
mod server_reading;
pub mod topology;
pub mod trim;
pub mod umount;
