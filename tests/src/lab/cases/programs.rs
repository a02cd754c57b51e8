//! Whole programs in the guest.

use anyhow::Result;

use crate::lab::guest::Guest;

pub fn demo(guest: &mut Guest<'_>) -> Result<()> {
    guest.peerfs(&["demo", "--size", "32M"]).map(drop)
}
