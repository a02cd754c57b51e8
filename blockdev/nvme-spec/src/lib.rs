//! What crosses the wire between a host and an NVMe controller: registers, commands, completions and identify pages.
//!
//! Layouts only, no behaviour. Sections are those of the NVM Express Base Specification 1.4, where registers,
//! commands and pages are still in one document; 2.0 has the same layouts. All values are little-endian.

mod command;
mod completion;
mod identify;
pub mod memory;
pub mod register;
mod status;

pub use command::{AdminOpcode, Command, DatasetRange, Feature, IdentifyPage, IoOpcode, MAX_DATASET_RANGES};
pub use completion::{Completion, PHASE};
pub use identify::{IdentifyController, IdentifyNamespace, LbaFormat};
pub use status::{Status, StatusType};

/// The page size this host uses with every controller, bytes: CC.MPS = 0 (section 3.1.5). Every controller that x86
/// hosts use supports it.
pub const PAGE_BYTES: u64 = 4096;

/// Queue id of the admin queues (section 4.1).
pub const ADMIN_QUEUE: u16 = 0;

/// The namespace id that means every namespace (section 6.1.5).
pub const ALL_NAMESPACES: u32 = u32::MAX;
