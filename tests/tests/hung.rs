//! A hung holder beside a good one: see `torture::hung`.

use anyhow::Result;
use peerfs_tests::{seed, torture::hung};

#[test]
fn a_hung_process_delays_nobody_beyond_the_deadline() -> Result<()> {
    hung::all(seed(1))
}
