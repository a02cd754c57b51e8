//! The FUSE transport.

mod adapter;
mod answer;
mod backing;
mod cache;
mod fusermount;
mod mount;
mod mount_table;
mod pool;
mod seek;
mod settle;
mod translate;

pub use adapter::Adapter;
pub use cache::FuseCache;
pub use mount::{FuseMount, FuseOptions, MountError, READ_AHEAD_KB, Unmounted, unmount};
pub use mount_table::{Entry, entry as mount_table_entry};
