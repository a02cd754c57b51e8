//! Device memory between processes and users: see `torture::devmem`.

use anyhow::Result;
use peerfs_tests::torture::devmem;

#[test]
fn importers_of_others_map_device_memory_where_permissions_allow() -> Result<()> {
    devmem::device_to_device()
}

#[test]
fn device_memory_has_limits_and_names_them() -> Result<()> {
    devmem::limits()
}

#[test]
fn device_memory_moves_under_pressure_and_comes_back() -> Result<()> {
    devmem::pressure()
}

#[test]
fn a_killed_owner_leaves_no_device_memory() -> Result<()> {
    devmem::killed_owner()
}
