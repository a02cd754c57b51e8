//! `peerfs umount`: returns when the volume is closed.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nix::errno::Errno;
use peerfs_blockdev::OpenMode;
use peerfs_client::File;
use peerfs_fs::fuse::{Unmounted, unmount};
use peerfs_fs::store::probe;
use peerfs_sys::ProcessHandle;
use serde_json::Value;

use super::server_info::{self, NoServer};
use crate::args::UmountArgs;
use crate::{busy, config, output};

/// After this long a person wants to know what is being waited for.
const QUIET_WAIT: Duration = Duration::from_secs(2);
/// The guardian, which shares the volume's lock, ends right after the server.
const GUARDIAN_WAIT: Duration = Duration::from_secs(2);
/// The last commit and write-back of a large aperture fit in this.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

pub fn run(args: UmountArgs) -> Result<ExitCode> {
    let path = config::absolute(&args.mountpoint)?;
    let info = match server_info::info(&path) {
        Ok(info) => info,
        Err(NoServer::Dead) => return unmount_dead(&path),
        Err(other) => return Err(anyhow::Error::from(other).context("umount")),
    };
    let mountpoint = path.canonicalize().with_context(|| format!("umount {}", path.display()))?;
    let server = server_info::server_pid(&info).and_then(|pid| ProcessHandle::open(pid).ok().map(|process| (pid, process)));
    if args.force {
        end_mappings(&mountpoint);
    }
    let how = busy::patiently(|| unmount(&mountpoint, args.force)).map_err(|error| refused(&mountpoint, &error))?;
    match (how, server) {
        (_, None) => Ok(ExitCode::SUCCESS),
        (Unmounted::Cleanly, Some((pid, server))) => {
            wait_closed(&mountpoint, pid, &server)?;
            check_closed(&info)
        }
        (Unmounted::Detached, Some((pid, server))) => wait_detached(&mountpoint, pid, &server),
    }
}

/// A mount without a server serves nobody: whoever still has files open gets errors already.
fn unmount_dead(path: &Path) -> Result<ExitCode> {
    let mountpoint = resolve_dead(path)?;
    unmount(&mountpoint, true).map_err(|error| refused(&mountpoint, &error))?;
    Ok(ExitCode::SUCCESS)
}

/// The mount point itself cannot be looked at any more, its directory can.
fn resolve_dead(path: &Path) -> Result<PathBuf> {
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => Ok(parent.canonicalize().with_context(|| format!("umount {}", path.display()))?.join(name)),
        _ => Ok(path.to_owned()),
    }
}

fn end_mappings(mountpoint: &Path) {
    let revoked = File::open(mountpoint).and_then(|root| root.revoke_mount_pins());
    if let Err(error) = revoked {
        tracing::warn!(%error, "direct mappings end with the server only");
    }
}

fn refused(mountpoint: &Path, error: &io::Error) -> anyhow::Error {
    let shown = mountpoint.display();
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EBUSY) => anyhow!(
            "umount {shown}: busy: programs use files of it (fuser -vm {shown} names them); end them, or use --force to detach"
        ),
        Some(Errno::EINVAL | Errno::ENOENT) => {
            anyhow!("umount {shown}: not a mount point; name the directory that was mounted on")
        }
        Some(Errno::EPERM) => anyhow!("umount {shown}: not permitted; only root and the user who mounted it may"),
        _ => anyhow!("umount {shown}: {error}"),
    }
}

fn wait_closed(mountpoint: &Path, pid: u32, server: &ProcessHandle) -> Result<()> {
    if server.wait_exit(QUIET_WAIT)? {
        return Ok(());
    }
    eprintln!("peerfs: unmounted; waiting for server {pid} to close the volume (at most {} s)", LONGEST_WAIT.as_secs());
    if server.wait_exit(LONGEST_WAIT - QUIET_WAIT)? {
        return Ok(());
    }
    let shown = mountpoint.display();
    bail!(
        "umount {shown}: unmounted, but server {pid} has not closed the volume in {} s; see its log, or end what has the mount in a namespace of its own, such as a container (grep -l {shown} /proc/*/mountinfo names its processes)",
        LONGEST_WAIT.as_secs()
    );
}

/// The server's last commit may have failed, which only the volume tells. One that cannot be looked at, because it
/// is memory, or mounted again, or another user's, gets the benefit of the doubt.
fn check_closed(info: &Value) -> Result<ExitCode> {
    let name = info["device"]["name"].as_str().unwrap_or_default();
    let summary = match config::device(name) {
        Ok(device) if device.path().is_some() => {
            device.open(None, OpenMode::ReadOnly, GUARDIAN_WAIT).ok().and_then(|opened| probe(&opened.device).ok())
        }
        _ => None,
    };
    match summary {
        Some(summary) if !summary.clean && info["read_only"] != true => bail!(
            "umount: {name} was not closed in order: changes since the last fsync may be lost; see the server's log and run peerfs fsck {name}"
        ),
        _ => Ok(ExitCode::SUCCESS),
    }
}

fn wait_detached(mountpoint: &Path, pid: u32, server: &ProcessHandle) -> Result<ExitCode> {
    if !server.wait_exit(QUIET_WAIT)? {
        output::print(&format!(
            "{}: detached; programs still have files open, and server {pid} closes the volume when the last one is closed\n",
            mountpoint.display()
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}
