//! The mapping engine: who may reach which blocks directly, for how long, and
//! how that ends. It knows neither FUSE nor the on-disk format.

mod exporter;
mod types;

pub use exporter::Exporter;
pub use peerfs_abi::{ImporterFlags, MapFlags, Path, Reason, Stage, Trigger};
pub use types::*;
