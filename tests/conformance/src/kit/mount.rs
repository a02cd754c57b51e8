//! A volume in a temporary directory, mounted by the real `peerfs` binary.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::tidy::{self, Mounting};

/// The `peerfs` binary: `$PEERFS`, the running program, or the one that cargo built beside the test.
pub fn peerfs() -> PathBuf {
    if let Some(path) = std::env::var_os("PEERFS") {
        return path.into();
    }
    let mut path = std::env::current_exe().expect("a program has a path");
    if path.file_name().is_some_and(|name| name == "peerfs") {
        return path;
    }
    path.pop();
    if path.ends_with("deps") {
        path.pop();
    }
    path.push("peerfs");
    assert!(path.exists(), "{} is missing: run cargo test --workspace, which builds it", path.display());
    path
}

/// Runs a program, which must succeed.
pub(crate) fn run(command: &mut Command) -> Result<Output> {
    let output = command.output().with_context(|| format!("{command:?} cannot be started"))?;
    if !output.status.success() {
        bail!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(output)
}

/// What a scratch volume lies on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Media {
    /// An image file.
    Image,
    /// A file that is mapped as persistent memory would be, through the page cache.
    Mapped,
    /// Memory, of this size (as mount takes it); the volume ends with the mount.
    Memory(&'static str),
    /// A device, as mkfs takes it. A volume is made over whatever is on it.
    Device(String),
}

/// A scratch volume. Dropping it unmounts and removes everything.
pub struct ScratchMount {
    directory: TempDir,
    media: Media,
    mounted: bool,
}

impl ScratchMount {
    /// Makes a volume of `size` (as mkfs takes it) and mounts it with `options` (as mount takes them).
    pub fn new(size: &str, options: &[&str]) -> Result<Self> {
        ScratchMount::on(Media::Image, size, options)
    }

    /// As [`ScratchMount::new`], on media that mkfs makes a volume on.
    pub fn on(media: Media, size: &str, options: &[&str]) -> Result<Self> {
        let mut scratch = ScratchMount::unmounted(media)?;
        let force = matches!(scratch.media, Media::Device(_)).then_some("--force");
        run(Command::new(peerfs()).arg("mkfs").arg(scratch.device()).args(["--size", size]).args(force))?;
        scratch.mount(options)?;
        Ok(scratch)
    }

    /// Mounts a new volume in memory.
    pub fn in_memory(size: &'static str, options: &[&str]) -> Result<Self> {
        ScratchMount::of(Media::Memory(size), options)
    }

    /// Mounts the volume that is on a device.
    pub fn of(media: Media, options: &[&str]) -> Result<Self> {
        let mut scratch = ScratchMount::unmounted(media)?;
        scratch.mount(options)?;
        Ok(scratch)
    }

    fn unmounted(media: Media) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("peerfs-test-").tempdir()?;
        tidy::remove_on_signal(directory.path());
        let scratch = ScratchMount { directory, media, mounted: false };
        fs::create_dir(scratch.path())?;
        Ok(scratch)
    }

    /// The mount point.
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("mnt")
    }

    /// A file or directory on the mount.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// The file that holds the volume.
    pub fn image(&self) -> PathBuf {
        self.directory.path().join("volume.img")
    }

    /// The device, as commands take it.
    pub fn device(&self) -> String {
        match &self.media {
            Media::Image => format!("image:{}", self.image().display()),
            Media::Mapped => format!("pmem:{},nodax", self.image().display()),
            Media::Memory(size) => format!("mem:{size}"),
            Media::Device(device) => device.clone(),
        }
    }

    /// Mounts it.
    pub fn mount(&mut self, options: &[&str]) -> Result<()> {
        let _under_way = Mounting::begin()?;
        run(Command::new(peerfs()).arg("mount").arg(self.device()).arg(self.path()).args(options))?;
        self.mounted = true;
        Ok(())
    }

    /// Unmounts it and waits until the volume is closed.
    pub fn umount(&mut self) -> Result<()> {
        let outcome = run(Command::new(peerfs()).arg("umount").arg(self.path()));
        // A failure can also mean that the volume was not closed in order; the mount is gone then.
        self.mounted = self.alive();
        outcome.map(drop)
    }

    /// Unmounts it although programs hold mappings and open files.
    pub fn umount_force(&mut self) -> Result<()> {
        run(Command::new(peerfs()).args(["umount", "--force"]).arg(self.path()))?;
        self.mounted = false;
        Ok(())
    }

    /// The server's process id.
    pub fn server_pid(&self) -> Result<i32> {
        let pid = self.info()?["server_pid"].as_i64().context("info.json names the server")?;
        Ok(i32::try_from(pid)?)
    }

    /// The server's state.
    pub fn info(&self) -> Result<serde_json::Value> {
        Ok(serde_json::from_slice(&fs::read(self.join(".peerfs/info.json"))?)?)
    }

    /// Kills the server as a crash would, and takes the dead mount off.
    pub fn crash(&mut self) -> Result<()> {
        let pid = self.server_pid()?;
        kill(Pid::from_raw(pid), Signal::SIGKILL)?;
        self.umount()
    }

    /// Its server has ended by itself, and the mount with it.
    pub fn has_unmounted_itself(&mut self) {
        self.mounted = false;
    }

    /// Checks the unmounted volume.
    pub fn fsck(&self) -> Result<()> {
        ensure!(!self.mounted, "fsck needs the volume unmounted");
        run(Command::new(peerfs()).arg("fsck").arg(self.device()))?;
        Ok(())
    }

    /// Whether the server answers.
    pub fn alive(&self) -> bool {
        self.info().is_ok()
    }

    /// The directory that holds image and mount point.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for ScratchMount {
    fn drop(&mut self) {
        tidy::wait_if_ending();
        if self.mounted {
            let server = self.server_pid();
            let outcome = run(Command::new(peerfs()).args(["umount", "--force"]).arg(self.path()));
            if let Err(error) = outcome {
                eprintln!("the scratch mount {} stays: {error:#}", self.path().display());
            }
            // A test that failed may still hold a pin, which keeps the server from ending by itself. One that has ended
            // is no error.
            if let Ok(server) = server {
                let _ = kill(Pid::from_raw(server), Signal::SIGTERM);
            }
        }
        tidy::removed(self.directory.path());
    }
}
