//! Order and lifetimes, with a GPU of our own and the pins of a real mount.

mod fake;
mod lifetime;
mod revocation;
mod scene;
mod transfer;
