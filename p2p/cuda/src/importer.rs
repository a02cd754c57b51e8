//! How a GPU registers itself with a mount.

use peerfs_abi::names::{CUDA_PREFIX, importer_flags};
use peerfs_client::{ImporterFlags, ImporterSpec};

/// The number of the GPU that an importer's name means: `cuda:0` is the first. `None` for other names.
pub fn ordinal(name: &str) -> Option<u32> {
    importer_flags(name)?;
    name.strip_prefix(CUDA_PREFIX)?.parse().ok()
}

/// The importer that GPU `ordinal` is: static, since its registrations cannot be taken back, and without a PCI address, since
/// it reaches main memory only.
pub fn spec(ordinal: u32) -> ImporterSpec {
    let name = format!("{CUDA_PREFIX}{ordinal}");
    ImporterSpec { flags: importer_flags(&name).unwrap_or(ImporterFlags::empty()), name, ..ImporterSpec::cpu() }
}
