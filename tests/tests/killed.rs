//! Clients killed at random moments: see `torture::killed`. `PEERFS_CLIENTS` sets their number.

use anyhow::Result;
use peerfs_tests::{seed, torture::killed};

#[test]
fn clients_killed_at_random_moments_leave_nothing() -> Result<()> {
    let clients = std::env::var("PEERFS_CLIENTS").ok().and_then(|text| text.parse().ok()).unwrap_or(200);
    killed::all(seed(1), clients, killed::CROWD)
}
