//! Hostile holders of grants: see `torture::attack`.

use anyhow::Result;
use peerfs_tests::{seed, torture::attack};

#[test]
fn grants_through_the_mount_withstand_their_holders() -> Result<()> {
    attack::all(seed(1), &[])
}

#[test]
fn grants_over_the_socket_withstand_their_holders() -> Result<()> {
    attack::all(seed(1), &["-o", "grants=socket"])
}
