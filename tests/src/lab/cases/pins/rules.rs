//! The rules of pins on a kernel that makes dma-bufs and has a driver that imports them.

use anyhow::{Result, ensure};

use crate::lab::guest::Guest;

pub fn conform(guest: &mut Guest<'_>) -> Result<()> {
    guest.run("modprobe", &["vgem"])?;
    let said = guest.peerfs(&["conformance", "--backend", "image", "--case", "pin-"])?;
    for needed in ["pin-dmabuf", "pin-detached", "pin-imported"] {
        ensure!(said.contains(needed), "{needed} did not run: {said}");
    }
    ensure!(said.trim_end().ends_with(" 0 failed, 0 skipped"), "not all passed: {said}");
    Ok(())
}
