//! What the host checks by itself: the media, which are its files, and the IOMMU's faults.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::command::output;
use super::disks::Disks;
use crate::lab::cases::Medium;

/// The medium holds a clean volume.
///
/// # Errors
/// What fsck found.
pub fn clean(disks: &Disks, medium: Medium) -> Result<()> {
    fsck(&disks.of(medium)).with_context(|| format!("the host's fsck of {medium:?}"))
}

/// An image is a clean volume.
///
/// # Errors
/// What fsck found.
pub fn fsck(image: &Path) -> Result<()> {
    let said = output(Command::new(crate::peerfs()).arg("fsck").arg(format!("image:{}", image.display())), "peerfs")?;
    let said = String::from_utf8_lossy(&said);
    ensure!(said.contains("clean"), "fsck says: {said}");
    Ok(())
}

/// The IOMMU had to stop no transfer.
///
/// # Errors
/// The first lines of what it stopped.
pub fn no_faults(trace: &Path) -> Result<()> {
    let text = fs::read_to_string(trace).with_context(|| trace.display().to_string())?;
    let faults: Vec<&str> = text.lines().filter(|line| line.contains("vtd_dmar_fault")).collect();
    ensure!(faults.is_empty(), "the IOMMU stopped {} transfers, among them: {:?}", faults.len(), &faults[..faults.len().min(3)]);
    Ok(())
}
