//! Reading metadata that may be corrupt, in a process of its own.
//!
//! The metadata database aborts the process on some kinds of damage, so a mount
//! or fsck has somebody else look first: the hidden command `check-metadata`.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};
use peerfs_blockdev::{BlockDevice, DeviceSpec, OpenMode};
use peerfs_fs::server::LOCK_WAIT;
use peerfs_fs::store::probe;
use serde_json::Value;
use std::sync::Arc;

use crate::config::own_program;

/// The device without its aperture, for looking only.
pub fn open_for_reading(device: &DeviceSpec) -> Result<Arc<dyn BlockDevice>> {
    if let DeviceSpec::Mem(_) = device {
        bail!("{device}: a memory device exists only while it is mounted; ask its mount point");
    }
    Ok(device.open(Some(0), OpenMode::ReadOnly, LOCK_WAIT)?.device)
}

/// Before a volume is opened: refuses what is no volume, and lets a child read its metadata. A volume that was closed
/// in order is read too: damage on the medium does not ask, and would end the server later. It takes some 0.2 s for a
/// million files.
pub fn before_opening(device: &DeviceSpec) -> Result<()> {
    if let DeviceSpec::Mem(_) = device {
        return Ok(());
    }
    probe(&open_for_reading(device)?)?;
    let output = in_child(device, false)?;
    if output.status.success() {
        return Ok(());
    }
    bail!("metadata of {device} is corrupt ({}); run peerfs fsck {device}", what_failed(&output));
}

/// The full check, as JSON; an error when the metadata cannot even be read.
pub fn full_report(device: &DeviceSpec) -> Result<Value> {
    let output = in_child(device, true)?;
    if !output.status.success() {
        bail!("{}", what_failed(&output));
    }
    serde_json::from_slice(&output.stdout).with_context(|| format!("{device}: the checking process reported nonsense"))
}

fn in_child(device: &DeviceSpec, full: bool) -> Result<Output> {
    let mut command = Command::new(own_program()?);
    command.arg("check-metadata").arg(device.to_string()).args(full.then_some("--full")).stdin(Stdio::null());
    let output: io::Result<Output> = command.output();
    output.context("the checking process cannot be started")
}

/// The child's own line if it could still say something, else how it died.
fn what_failed(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    let said = stderr.lines().rev().find_map(|line| line.strip_prefix("peerfs: "));
    match (said, output.status.signal()) {
        (Some(line), None) => line.to_owned(),
        (_, Some(signal)) => format!("reading it ended the checking process with signal {signal}"),
        (None, None) => format!("the checking process failed with {}", output.status),
    }
}
