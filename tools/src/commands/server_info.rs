//! The virtual files of a mount, as its commands read them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use nix::errno::Errno;
use peerfs_abi::names::{CONTROL_DIR, DEVMEM_JSON, INFO_JSON, MAPPINGS_JSON, METRICS, TOPOLOGY_JSON};
use serde_json::Value;

/// Why there is no answer.
#[derive(Debug)]
pub enum NoServer {
    /// The server has died; the mount is still there.
    Dead,
    /// Something else.
    Other(anyhow::Error),
}

impl From<NoServer> for anyhow::Error {
    fn from(reason: NoServer) -> Self {
        match reason {
            NoServer::Dead => anyhow!("the server of this mount has gone; run peerfs umount on it, then mount again"),
            NoServer::Other(error) => error,
        }
    }
}

/// State of the server of the mount that `path` is in.
pub fn info(path: &Path) -> Result<Value, NoServer> {
    read(path, INFO_JSON)
}

/// Metrics of the mount that `path` is in.
pub fn metrics(path: &Path) -> Result<String> {
    let text = read_text(path, METRICS).map_err(anyhow::Error::from).with_context(|| path.display().to_string())?;
    String::from_utf8(text).with_context(|| format!("{}: the server's answer is no text", path.display()))
}

/// Ledger of the mount that `path` is in.
pub fn mappings(path: &Path) -> Result<Value> {
    read(path, MAPPINGS_JSON).map_err(anyhow::Error::from).with_context(|| path.display().to_string())
}

/// PCI topology that the mount goes by that `path` is in.
pub fn topology(path: &Path) -> Result<Value> {
    read(path, TOPOLOGY_JSON).map_err(anyhow::Error::from).with_context(|| path.display().to_string())
}

/// Use of the device memory of the mount that `path` is in.
pub fn device_memory(path: &Path) -> Result<Value> {
    read(path, DEVMEM_JSON).map_err(anyhow::Error::from)
}

/// The number of the server's process.
pub fn server_pid(info: &Value) -> Option<u32> {
    info["server_pid"].as_u64().and_then(|pid| u32::try_from(pid).ok())
}

fn read_text(path: &Path, name: &str) -> Result<Vec<u8>, NoServer> {
    let directory: PathBuf = if path.is_file() { path.parent().unwrap_or(path).to_owned() } else { path.to_owned() };
    fs::read(directory.join(CONTROL_DIR).join(name)).map_err(|error| explain(path, &error))
}

fn read(path: &Path, name: &str) -> Result<Value, NoServer> {
    let text = read_text(path, name)?;
    serde_json::from_slice(&text)
        .map_err(|error| NoServer::Other(anyhow!("{}: the server's answer is no JSON: {error}", path.display())))
}

fn explain(path: &Path, error: &io::Error) -> NoServer {
    let shown = path.display();
    NoServer::Other(match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOTCONN | Errno::ECONNABORTED) => return NoServer::Dead,
        Some(Errno::ENOENT | Errno::ENOTDIR) if !path.exists() => anyhow!("{shown}: no such file or directory"),
        Some(Errno::ENOENT | Errno::ENOTDIR) => {
            anyhow!("{shown}: not on a peerfs mount; name a mount point (findmnt -t fuse,fuse.peerfs lists them)")
        }
        Some(Errno::ENODEV) => anyhow!("{shown}: the mount has no device memory; mount with -o devmem=SIZE"),
        Some(Errno::EACCES | Errno::EPERM) => anyhow!("{shown}: only the owner of the mount may ask this"),
        _ => anyhow!("{shown}: {error}"),
    })
}
