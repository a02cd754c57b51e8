//! Contexts: an importer bound to one address space.
//!
//! A process id says nothing about the address space behind it: it survives
//! exec. An open `/proc/PID/mem` does: it names the address space it was opened
//! on, and reads end-of-file once that is gone.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};
use nix::sys::uio::pread;

use super::session::Session;
use crate::api::Client;
use crate::types::{ContextId, Importer};
use std::sync::Arc;

pub(super) struct Context {
    pub(super) id: ContextId,
    pub(super) session: Arc<Session>,
    pub(super) importer: Importer,
    pub(super) owner: Client,
    mem: OwnedFd,
}

impl Context {
    pub(super) fn new(id: ContextId, session: Arc<Session>, importer: Importer, owner: Client, mem: OwnedFd) -> Arc<Context> {
        Arc::new(Context { id, session, importer, owner, mem })
    }

    /// The caller is the process that made the context, and still has the address space it had then.
    pub(super) fn is_called_by(&self, client: Client) -> bool {
        self.owner == client && is_alive(&self.mem)
    }
}

/// Address 0 is never mapped: the read fails with EIO while the address space exists, and ends after.
fn is_alive(mem: &OwnedFd) -> bool {
    pread(mem, &mut [0], 0) != Ok(0)
}

/// The descriptor to tell an address space by: the one the process passed, if it is what it should be, or our own.
pub(super) fn address_space(tgid: u32, passed: Option<OwnedFd>) -> Result<OwnedFd, String> {
    let mem = match passed {
        Some(mem) => {
            check_passed(tgid, &mem)?;
            mem
        }
        None => fs::File::open(format!("/proc/{tgid}/mem")).map_err(|err| format!("/proc/{tgid}/mem: {err}"))?.into(),
    };
    match pread(&mem, &mut [0], 0) {
        Err(Errno::EIO) => Ok(mem),
        Ok(_) => Err("its address space is gone".into()),
        Err(err) => Err(format!("it cannot be read: {err}")),
    }
}

fn check_passed(tgid: u32, mem: &OwnedFd) -> Result<(), String> {
    let kind = fstatfs(mem).map_err(|err| err.to_string())?;
    if kind.filesystem_type() != PROC_SUPER_MAGIC {
        return Err("it is not on procfs".into());
    }
    let path = fs::read_link(format!("/proc/self/fd/{}", mem.as_raw_fd())).map_err(|err| err.to_string())?;
    let path = path.to_string_lossy();
    let names_it = |pid: &str| path.ends_with(&format!("/{pid}/mem"));
    if names_it(&tgid.to_string()) || own_namespace_pid(tgid).is_some_and(|pid| names_it(&pid)) {
        return Ok(());
    }
    Err(format!("it is {path}"))
}

/// The process id as the process itself sees it (it may live in a container with its own procfs).
fn own_namespace_pid(tgid: u32) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{tgid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    line.split_whitespace().last().map(str::to_owned)
}
