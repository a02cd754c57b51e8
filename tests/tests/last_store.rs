//! The last store before the cut: see `torture::last_store`. Five rounds end in five different ways.

use anyhow::Result;
use peerfs_tests::{seed, torture::last_store};

#[test]
fn every_completed_store_is_in_the_file() -> Result<()> {
    last_store::rounds(seed(1), 5, &[])
}

#[test]
fn every_completed_store_is_in_the_file_with_grants_over_the_socket() -> Result<()> {
    last_store::rounds(seed(2), 5, &["-o", "grants=socket"])
}
