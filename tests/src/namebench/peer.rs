//! ext4 on a loop device: what every Linux machine has.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

/// A scratch filesystem. Dropping it unmounts and removes it.
pub(super) struct LoopExt4(TempDir);

impl LoopExt4 {
    /// Of a size (as truncate(1) takes it), with room for so many files.
    pub(super) fn new(size: &str, files: u64) -> Result<LoopExt4> {
        let directory = tempfile::Builder::new().prefix("peerfs-test-").tempdir()?;
        let (image, mountpoint) = (directory.path().join("image"), directory.path().join("mnt"));
        std::fs::create_dir(&mountpoint)?;
        run(Command::new("truncate").args(["-s", size]).arg(&image))?;
        run(Command::new("mkfs.ext4").args(["-q", "-F", "-N", &(files + files / 8 + 1000).to_string()]).arg(&image))?;
        run(Command::new("mount").args(["-o", "loop"]).args([&image, &mountpoint]))?;
        Ok(LoopExt4(directory))
    }

    pub(super) fn path(&self) -> PathBuf {
        self.0.path().join("mnt")
    }
}

impl Drop for LoopExt4 {
    fn drop(&mut self) {
        if let Err(error) = run(Command::new("umount").arg(self.path())) {
            eprintln!("{error:#}");
        }
    }
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("{command:?} cannot be started"))?;
    ensure!(status.success(), "{command:?} failed");
    Ok(())
}
