//! An NVMe controller in software, for tests of the driver on machines that have none, and with faults that no real
//! one shows on demand.
//!
//! [`EmulatedController`] is a [`peerfs_blockdev::nvme::Port`]: it has registers, reads submission rings and page lists
//! out of the memory it handed out, and holds the driver to the rules: what a real controller would refuse is refused,
//! what a driver must never do is recorded ([`EmulatedController::violations`]), and so is every access to memory
//! that the controller may not reach ([`EmulatedController::dma_faults`]). [`Profile`] says what kind of controller it is,
//! well-behaved or not; a [`FaultRule`] spoils chosen commands. A seed decides the order in which commands complete.

mod admin;
mod bar;
mod completion;
mod controller;
mod execute;
mod faults;
mod io;
mod media;
mod memory;
mod port;
mod profile;
mod prp;
mod queues;
mod random;
mod registers;
mod state;

pub use controller::EmulatedController;
pub use faults::{Answer, Fault, FaultRule, Which};
pub use media::Media;
pub use memory::{DmaFault, DmaFaultReason};
pub use profile::{Blocked, Processing, Profile};
pub use random::Random;
pub use state::Counts;
