//! A user-space driver for NVMe controllers (NVM Express Base Specification 1.4).
//!
//! [`Port`] is the way to a controller: VFIO for real ones, an emulated controller in tests. [`Controller`] brings it
//! up, has its queues, and recovers it ([`MAX_RECOVERIES`] says by which rule); [`Namespace`] is a block device on it.
//! No unsafe code: memory that the controller shares is reached by copying calls of `peerfs-sys`.
//!
//! Lock order: `Controller::life`, the I/O queues by id, the list of private queues, a private queue, the admin queue, and
//! nothing after. Whoever holds the life has
//! the admin queue for themselves. Events are reported with no lock held.

mod controller;
mod dma_engine;
mod error;
mod lease;
mod lent;
mod namespace;
mod pmr;
mod port;
mod private_queue;
mod prp;
mod queue;
mod recovery;
mod region_memory;
mod registers;
mod removal;
mod reset_mark;
mod vfio;
mod volume;

pub use controller::{Controller, Settings};
pub use dma_engine::DmaEngine;
pub use error::NvmeError;
pub use lease::{Direction, Lease, LeaseError, Transfer, TransferError};
pub use lent::{Content, ControllerMemory};
pub use namespace::Namespace;
pub use pmr::{Access, MAX_REVIVALS, PersistentRegion, REVIVAL_WINDOW};
pub use port::{BarMemory, DmaBlock, PeerMemory, Port, Reach};
pub use private_queue::PrivateQueue;
pub use recovery::{MAX_RECOVERIES, RECOVERY_WINDOW};
pub use vfio::VfioPort;
pub(crate) use volume::{open_namespace, open_region};
