//! The files that are the controllers' media. They outlive a boot.

use std::fs::File;
use std::path::PathBuf;

use anyhow::{Context, Result};
use peerfs_conformance::kit::remove_on_signal;
use tempfile::TempDir;

use crate::lab::cases::Medium;

/// Of each namespace and of the PMR and CMB, bytes.
pub const BYTES: u64 = 64 << 20;

/// A directory with the media and the logs of boots.
pub struct Disks {
    directory: TempDir,
}

impl Disks {
    /// Empty media; `keep` leaves them behind.
    ///
    /// # Errors
    /// When there is no room.
    pub fn new(name: &str, keep: bool) -> Result<Disks> {
        let mut directory = tempfile::Builder::new().prefix(&format!("peerfs-lab-{name}-")).tempdir()?;
        directory.disable_cleanup(keep);
        if !keep {
            remove_on_signal(directory.path());
        }
        let disks = Disks { directory };
        for path in [disks.pmr(), disks.namespace_a(), disks.namespace_b()] {
            File::create(&path)?.set_len(BYTES).with_context(|| path.display().to_string())?;
        }
        Ok(disks)
    }

    /// Persistent memory of the first controller.
    pub fn pmr(&self) -> PathBuf {
        self.file("pmr.img")
    }

    /// Namespace of the first controller, which has the PMR.
    pub fn namespace_a(&self) -> PathBuf {
        self.file("namespace-a.img")
    }

    /// Namespace of the second controller, which has the CMB.
    pub fn namespace_b(&self) -> PathBuf {
        self.file("namespace-b.img")
    }

    /// The file of a medium.
    pub fn of(&self, medium: Medium) -> PathBuf {
        match medium {
            Medium::Pmr => self.pmr(),
            Medium::NamespaceB => self.namespace_b(),
        }
    }

    /// A file in the directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}
