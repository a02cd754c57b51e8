//! The mapping engine: who may reach which blocks directly, for how long, and
//! how that ends. It knows neither FUSE nor the on-disk format.

#![cfg_attr(shuttle, expect(clippy::large_enum_variant, reason = "shuttle's atomics are larger than the real ones"))]

mod api;
mod clock;
mod custody;
mod decide;
pub mod devmem;
mod engine;
mod exporter;
mod grant_socket;
pub mod guardian;
mod inside;
mod moved;
mod nvme_importer;
mod server_importer;
mod sync;
pub mod topology;
mod types;

pub use api::*;
pub use clock::{Clock, Gate, SystemClock, VirtualClock};
pub use custody::{Custody, MemoryCustody};
pub use decide::{Conditions, decide};
pub use engine::*;
pub use exporter::Exporter;
pub use grant_socket::GrantSocket;
pub use guardian::Guardian;
pub use inside::{InsideError, REVOKED};
pub use moved::{ByReason, Moved};
pub use nvme_importer::{CopyCall, CopyDirection, CopyError, FileBytes, NvmeImporter, copy};
pub use peerfs_abi::{ImporterFlags, MapFlags, Path, Reason, ReasonSet, Stage, Trigger, TriggerSet};
pub use server_importer::{ServerReadError, read_through_server, server_importer};
pub use types::*;
