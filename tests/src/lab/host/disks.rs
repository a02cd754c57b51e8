//! The files that are the controllers' media. They outlive a boot.

use std::fs::File;
use std::path::PathBuf;

use anyhow::{Context, Result};
use peerfs_conformance::kit::remove_on_signal;
use tempfile::TempDir;

use crate::lab::cases::{Medium, Rig};
use crate::lab::channel::Namespace;

/// Of each namespace and of the PMR, bytes.
fn bytes(rig: Rig) -> u64 {
    match rig {
        Rig::Pair => 64 << 20,
        // Room for files of 64 MiB.
        Rig::Ports => 256 << 20,
    }
}

/// A directory with the media and the logs of boots.
pub struct Disks {
    directory: TempDir,
    rig: Rig,
}

impl Disks {
    /// Empty media; `keep` leaves them behind.
    ///
    /// # Errors
    /// When there is no room.
    pub fn new(name: &str, rig: Rig, keep: bool) -> Result<Disks> {
        let mut directory = tempfile::Builder::new().prefix(&format!("peerfs-lab-{name}-")).tempdir()?;
        directory.disable_cleanup(keep);
        if !keep {
            remove_on_signal(directory.path());
        }
        let disks = Disks { directory, rig };
        for path in [disks.pmr(), disks.namespace(Namespace::A), disks.namespace(Namespace::B), disks.namespace(Namespace::Slow)]
        {
            File::create(&path)?.set_len(disks.bytes()).with_context(|| path.display().to_string())?;
        }
        Ok(disks)
    }

    /// For which machine.
    pub fn rig(&self) -> Rig {
        self.rig
    }

    /// Size of each, bytes.
    pub fn bytes(&self) -> u64 {
        bytes(self.rig)
    }

    /// Persistent memory of the first controller.
    pub fn pmr(&self) -> PathBuf {
        self.file("pmr.img")
    }

    /// The namespace of a controller.
    pub fn namespace(&self, namespace: Namespace) -> PathBuf {
        self.file(match namespace {
            Namespace::A => "namespace-a.img",
            Namespace::B => "namespace-b.img",
            Namespace::Slow => "namespace-slow.img",
        })
    }

    /// The file of a medium.
    pub fn of(&self, medium: Medium) -> PathBuf {
        match medium {
            Medium::Pmr => self.pmr(),
            Medium::NamespaceB => self.namespace(Namespace::B),
        }
    }

    /// A file in the directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}
