//! Random operations against a model of what files must contain.
//!
//! [`World`] works without a kernel: the real file operations and the real mapping
//! engine over a device in memory, with a page cache, importers and a clock that
//! are simulated, so that a seed decides everything and time costs nothing.
//! [`remote`] works on a real mount with client processes. Every byte that any
//! path delivers is compared with the model.

mod checks;
mod clock;
mod cpu_ops;
mod importer;
mod oracle;
mod pages;
mod peer_ops;
mod racing;
pub mod remote;
mod restart;
mod system;
mod tally;
mod world;

pub use tally::Tally;
pub use world::{Plan, World};
