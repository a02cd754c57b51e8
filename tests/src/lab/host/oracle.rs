//! What the host checks by itself: the media, which are its files, and the IOMMU's faults.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::command::output;
use super::disks::Disks;
use crate::lab::cases::Medium;
use crate::lab::channel::Namespace;
use crate::lab::guest::contents;

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

/// A namespace has the bytes of a seed.
///
/// # Errors
/// Where it first has others.
pub fn holds(disks: &Disks, namespace: Namespace, offset: u64, length: u64, seed: u64) -> Result<()> {
    let mut found = vec![0; length as usize];
    File::open(disks.namespace(namespace))?.read_exact_at(&mut found, offset)?;
    let expected = contents(seed, length as usize);
    let differing = found.iter().zip(&expected).position(|(found, expected)| found != expected);
    match differing {
        None => Ok(()),
        Some(at) => bail!("on the host, byte {at} of {length} at {offset} of namespace {namespace:?} differs"),
    }
}

/// Transfers that the IOMMU stopped, case by case.
pub struct Faults {
    trace: PathBuf,
    known: usize,
}

impl Faults {
    /// What QEMU traces of a boot.
    pub fn of(trace: PathBuf) -> Faults {
        Faults { trace, known: 0 }
    }

    /// Since the last time, some were stopped, or none.
    ///
    /// # Errors
    /// The first lines of what was stopped, or that nothing was.
    pub fn judge(&mut self, expected: bool) -> Result<()> {
        let text = fs::read_to_string(&self.trace).with_context(|| self.trace.display().to_string())?;
        let faults: Vec<&str> = text.lines().filter(|line| line.contains("vtd_dmar_fault")).skip(self.known).collect();
        self.known += faults.len();
        let few = &faults[..faults.len().min(3)];
        ensure!(expected || faults.is_empty(), "the IOMMU stopped {} transfers, among them: {few:?}", faults.len());
        ensure!(!expected || !faults.is_empty(), "the IOMMU stopped nothing");
        Ok(())
    }
}
