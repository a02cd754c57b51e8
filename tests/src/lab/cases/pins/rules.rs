//! The rules of dma-bufs, which other machines skip, on a kernel that makes and imports them.

use anyhow::{Result, ensure};

use crate::lab::guest::Guest;

/// The cases of the conformance suite that have `dmabuf` in their names.
const CASES: [&str; 5] =
    ["pin-dmabuf", "pin-dmabuf-detached", "pin-dmabuf-imported", "pin-dmabuf-unmounted", "pin-dmabuf-orphaned"];

pub fn conform(guest: &mut Guest<'_>) -> Result<()> {
    guest.run("modprobe", &["vgem"])?;
    let said = guest.peerfs(&["conformance", "--backend", "image", "--case", "dmabuf"])?;
    for case in CASES {
        // One that is skipped has not shown anything.
        let passed = |line: &str| line.starts_with("passed") && line.contains(&format!(" {case}:"));
        ensure!(said.lines().any(passed), "{case} has not passed: {said}");
    }
    Ok(())
}
