//! What the whole-system tests share: a scratch volume on a real mount, served
//! by the real binary, and a generator of random choices that a seed replays.

pub mod model;
mod mount;
mod random;
pub mod torture;

pub use mount::{ScratchMount, peerfs};
pub use random::{Random, seed};
