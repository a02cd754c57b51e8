//! The FUSE transport.

mod adapter;
mod answer;
mod backing;
mod cache;
mod mount;
mod pool;
mod seek;
mod settle;
mod translate;

pub use adapter::Adapter;
pub use cache::FuseCache;
pub use mount::{FuseMount, FuseOptions, MountError, Unmounted, unmount};
