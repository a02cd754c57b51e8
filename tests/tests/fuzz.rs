//! Bounded runs of the input fuzzer: see `fuzz`.

use anyhow::Result;
use peerfs_tests::{fuzz, seed};

#[test]
fn ioctls_survive_any_input() -> Result<()> {
    fuzz::ioctls(seed(1), 5)
}

#[test]
fn the_grant_socket_survives_any_message() -> Result<()> {
    fuzz::socket(seed(1), 5)
}
