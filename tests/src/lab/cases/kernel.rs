//! A namespace that the kernel's own driver has.

use anyhow::Result;

use super::tree::{fill, look};
use crate::lab::guest::{A, Guest};

pub fn disk(guest: &mut Guest<'_>) -> Result<()> {
    let device = format!("image:{}", guest.kernel_disk(A)?);
    guest.peerfs(&["mkfs", "--force", &device])?;
    fill(guest, &device)?;
    look(guest, &device)
}
