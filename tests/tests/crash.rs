//! kill -9 of the server: see `torture::crash`. The acceptance script does ten rounds.

use anyhow::Result;
use peerfs_tests::{Media, seed, torture::crash};

#[test]
fn what_was_synced_survives_and_no_old_window_can_be_read() -> Result<()> {
    crash::rounds(Media::Image, seed(1), 2, &[])
}

#[test]
fn the_same_with_grants_over_the_socket() -> Result<()> {
    crash::rounds(Media::Image, seed(101), 1, &["-o", "grants=socket"])
}

#[test]
fn the_same_on_a_mapped_device() -> Result<()> {
    crash::rounds(Media::Mapped, seed(201), 1, &["--cmb", "64M"])
}
