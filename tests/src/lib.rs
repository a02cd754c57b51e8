//! What the whole-system tests share: a scratch volume on a real mount, served
//! by the real binary, and a generator of random choices that a seed replays.

pub mod documents;
pub mod fuzz;
pub mod headless;
pub mod lab;
pub mod mapbench;
pub mod model;
pub mod namebench;
mod report;
pub mod torture;

pub use peerfs_conformance::kit::{Media, Random, ScratchMount, peerfs, seed};
pub use peerfs_conformance::words;
