//! A bounded run of the coherence stress: see `torture::coherence`.

use anyhow::Result;
use peerfs_tests::{seed, torture::coherence};

#[test]
fn every_value_read_is_one_that_a_legal_order_explains() -> Result<()> {
    coherence::run(seed(1), 18)
}
