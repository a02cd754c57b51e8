//! The guardian: a small process that outlives the server by a moment.
//!
//! It holds a descriptor of every window, of every sequence page, and of the
//! volume's lock. When the server dies, however it dies, the guardian tells the
//! clients, truncates the windows, and only then lets go of the lock, so that no
//! second server starts while a client still has memory of the first.

mod keeper;
mod process;
mod protocol;

#[cfg(all(test, not(shuttle)))]
mod tests;

pub use keeper::run;
pub use process::Guardian;
