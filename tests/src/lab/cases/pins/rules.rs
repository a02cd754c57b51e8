//! The rules of dma-bufs, which other machines skip, on a kernel that makes and imports them.

use anyhow::{Result, ensure};

use crate::lab::guest::Guest;

/// Cases of the conformance suite have this in their names, on two backends.
const CASES: [&str; 5] =
    ["pin-dmabuf", "pin-dmabuf-detached", "pin-dmabuf-imported", "pin-dmabuf-unmounted", "pin-dmabuf-orphaned"];

pub fn conform(guest: &mut Guest<'_>) -> Result<()> {
    guest.run("modprobe", &["vgem"])?;
    let said = guest.peerfs(&["conformance", "--case", "dmabuf"])?;
    for case in CASES {
        let passed = said.lines().filter(|line| line.starts_with("passed") && line.contains(&format!(" {case}:"))).count();
        ensure!(passed == 2, "{case} passed on {passed} backends: {said}");
    }
    Ok(())
}
