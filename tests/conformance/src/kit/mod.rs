//! What whole-system tests share: a scratch volume on a real mount served by the real binary, child processes that
//! take part, the ABI without the client library, and a generator of random choices that a seed replays.

pub mod attempts;
mod graphics;
mod mount;
mod random;
pub mod raw;
mod tidy;
mod video;
pub mod worker;

pub use graphics::{GraphicsDevice, Imported};
pub(crate) use mount::run;
pub use mount::{Media, ScratchMount, peerfs};
pub use random::{Random, seed};
pub use tidy::{at_signal, remove_on_signal, tidy_on_signal};
pub use video::{Flow, VideoQueue};
