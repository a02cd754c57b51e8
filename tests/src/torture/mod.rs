//! Whole-system tests with hostile, hung and dying programs and with bad input. Each is a
//! function of a seed and a number of rounds, so that `cargo test` runs a short version and the
//! acceptance scripts a long one, through the program `peerfs-torture`.

pub mod aging;
pub mod attack;
pub mod bad_input;
pub mod coherence;
pub mod crash;
pub mod devmem;
pub mod holder;
pub mod hung;
pub mod killed;
pub mod last_store;

pub use peerfs_conformance::kit::{attempts, raw, worker};
