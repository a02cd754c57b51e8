//! What the whole-system tests share: a scratch volume on a real mount, served
//! by the real binary, and a generator of random choices that a seed replays.

mod mount;
mod random;

pub use mount::{ScratchMount, peerfs};
pub use random::{Random, seed};
