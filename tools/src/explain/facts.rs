//! What is known about a file and its mount beside the decision: the mount's own reports, and what stat(2) and procfs tell the
//! caller. What the caller may not see is left open.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use peerfs_abi::names::XATTR_DIRECT;
use peerfs_client::{DecisionTable, Reason};
use serde_json::Value;

use super::openers::{self, Opener};
use crate::args::RequestArgs;
use crate::commands::server_info;
use crate::ranges;

/// The state that refusals are explained with.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// `info.json`; null where the server does not answer.
    pub info: Value,
    /// `mappings.json`; null for others than the owner of the mount.
    pub ledger: Value,
    /// The pair of the topology from the importer to the storage device; null without one.
    pub pair: Value,
    /// Inode number of the file.
    pub inode: u64,
    /// Size of the file, bytes.
    pub size: u64,
    /// What kind of file it is.
    pub kind: &'static str,
    /// Permission bits and owner.
    pub mode: u32,
    /// User who owns the file.
    pub owner: u32,
    /// `user.peerfs.direct` of the file.
    pub policy: Option<String>,
    /// Processes that have the file open for writing, as far as the caller may see.
    pub writers: Vec<Opener>,
}

impl Facts {
    /// Looks up what the refusals of this table need.
    pub fn of(request: &RequestArgs, table: &DecisionTable) -> Facts {
        let path = &request.file;
        let directory = ranges::directory_of(path).unwrap_or_else(|_| path.clone());
        let ask = |answer: Result<Value, _>| answer.unwrap_or(Value::Null);
        let mut facts = Facts { info: ask(server_info::info(&directory).map_err(anyhow::Error::from)), ..Facts::default() };
        if let Ok(metadata) = fs::metadata(path) {
            facts.inode = metadata.ino();
            facts.size = metadata.len();
            facts.kind = kind(&metadata.file_type());
            facts.mode = metadata.mode() & 0o7777;
            facts.owner = metadata.uid();
        }
        let refused = |reason| table.segments.iter().any(|segment| segment.refusals.contains(reason));
        if refused(Reason::Policy) || refused(Reason::PageCached) {
            facts.policy = policy(path);
        }
        if refused(Reason::CpuWriter) {
            facts.writers = openers::writers(path);
        }
        if refused(Reason::Busy) {
            facts.ledger = ask(server_info::mappings(&directory));
        }
        if let Some((_, address)) = request.importer.split_once('@') {
            facts.pair = pair(&ask(server_info::topology(&directory)), address);
        }
        facts
    }

    /// Where the volume is mounted, for commands.
    pub fn mountpoint(&self) -> &str {
        self.info["mountpoint"].as_str().unwrap_or("MOUNTPOINT")
    }

    /// Whether an unmount ends the volume with all that is in it: its device is memory.
    pub fn ends_with_its_mount(&self) -> bool {
        self.info["device"]["backend"] == "mem"
    }

    /// The storage device as it was named at the mount, for commands.
    pub fn device(&self) -> &str {
        self.info["device"]["name"].as_str().unwrap_or("DEVICE")
    }
}

fn kind(file: &fs::FileType) -> &'static str {
    match () {
        () if file.is_file() => "a regular file",
        () if file.is_dir() => "a directory",
        () if file.is_fifo() => "a FIFO",
        () if file.is_socket() => "a socket",
        () if file.is_char_device() => "a character device",
        () if file.is_block_device() => "a block device",
        () => "no regular file",
    }
}

fn policy(path: &Path) -> Option<String> {
    let value = peerfs_sys::get_xattr(path, XATTR_DIRECT).ok()??;
    Some(String::from_utf8_lossy(&value).into_owned())
}

/// The way from an importer's address to the storage device.
fn pair(topology: &Value, importer: &str) -> Value {
    let storage = &topology["storage"]["address"];
    let pairs = topology["pairs"].as_array().map_or(&[][..], Vec::as_slice);
    pairs.iter().find(|pair| pair["from"] == importer && pair["to"] == *storage).cloned().unwrap_or_default()
}
