//! The address space that a context is bound to.
//!
//! A process id says nothing about the address space behind it: it survives exec, and is used again. No single thing
//! of the kernel does say it, so several are combined:
//!
//! - an open `/proc/PID/mem` names the address space it was opened on, and reads end-of-file once that is gone (its
//!   owner executed another program or ended). A process made with CLONE_VM keeps it alive, though;
//! - so the auxiliary vector is compared, which execve makes anew, at random places;
//! - a pidfd tells whether the process that made the context still lives, so that its number is still its own;
//! - kcmp(2) tells whether another process runs in the address space of that one *now*. A child of vfork that has not
//!   executed anything, and a sibling made with CLONE_VM, do: they are the context's own. A child of fork does not.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};
use nix::sys::uio::pread;
use peerfs_sys::ProcessHandle;

/// An address space, and the process that named it as its own.
pub(super) struct Home {
    tgid: u32,
    process: ProcessHandle,
    mem: OwnedFd,
    auxiliary_vector: Vec<u8>,
}

impl Home {
    /// The address space of a process. `passed`: the descriptor the process passed to tell it by; checked. Without one
    /// it is opened here.
    pub(super) fn of(tgid: u32, passed: Option<OwnedFd>) -> Result<Home, String> {
        let process = ProcessHandle::open(tgid).map_err(|err| err.to_string())?;
        let mem = match passed {
            Some(mem) => {
                check_passed(tgid, &mem)?;
                mem
            }
            None => fs::File::open(format!("/proc/{tgid}/mem")).map_err(|err| format!("/proc/{tgid}/mem: {err}"))?.into(),
        };
        match pread(&mem, &mut [0], 0) {
            Err(Errno::EIO) => {}
            Ok(_) => return Err("its address space is gone".into()),
            Err(err) => return Err(format!("it cannot be read: {err}")),
        }
        let auxiliary_vector = auxiliary_vector(tgid).map_err(|err| format!("/proc/{tgid}/auxv: {err}"))?;
        Ok(Home { tgid, process, mem, auxiliary_vector })
    }

    /// A process runs in this address space now.
    pub(super) fn is_of(&self, tgid: u32) -> bool {
        self.is_alive()
            && self.owner_lives()
            && (tgid == self.tgid || peerfs_sys::same_address_space(self.tgid, tgid).unwrap_or(false))
            && auxiliary_vector(tgid).is_ok_and(|now| now == self.auxiliary_vector)
    }

    /// Address 0 is never mapped: the read fails with EIO while the address space exists, and ends after.
    fn is_alive(&self) -> bool {
        pread(&self.mem, &mut [0], 0) != Ok(0)
    }

    fn owner_lives(&self) -> bool {
        self.process.wait_exit(Duration::ZERO).is_ok_and(|ended| !ended)
    }
}

/// As the kernel keeps it for the program that runs now: opened anew each time, because an open one stays with the
/// address space it was opened on.
fn auxiliary_vector(tgid: u32) -> std::io::Result<Vec<u8>> {
    fs::read(format!("/proc/{tgid}/auxv"))
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

#[cfg(all(test, not(shuttle)))]
mod tests {
    use std::process::{Command, Stdio};

    use peerfs_sys::ParkedSibling;

    use super::*;

    #[test]
    fn a_sibling_is_at_home_and_another_program_is_not() {
        let home = Home::of(std::process::id(), None).expect("own process");
        assert!(home.is_of(std::process::id()));
        let sibling = ParkedSibling::start().expect("clone");
        assert!(home.is_of(sibling.pid()));
        let mut stranger = Command::new("sleep").arg("60").spawn().expect("sleep(1)");
        assert!(!home.is_of(stranger.id()));
        stranger.kill().and_then(|()| stranger.wait()).expect("our own child");
    }

    #[test]
    fn a_home_ends_with_exec_and_with_exit() {
        // The shell waits for a line, then becomes another program.
        let mut shell = Command::new("sh");
        shell.args(["-c", "echo; read line; exec cat"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = shell.spawn().expect("sh(1)");
        let (mut input, mut output) = (child.stdin.take().expect("a pipe"), child.stdout.take().expect("a pipe"));
        let mut byte = [0];
        std::io::Read::read_exact(&mut output, &mut byte).expect("the shell's line");
        let home = Home::of(child.id(), None).expect("our own child");
        assert!(home.is_of(child.id()));
        std::io::Write::write_all(&mut input, b"go\nx").expect("a pipe");
        std::io::Read::read_exact(&mut output, &mut byte).expect("what cat(1) repeats");
        assert!(!home.is_of(child.id()), "after exec");
        drop(input);
        child.wait().expect("our own child");
        assert!(!home.is_of(child.id()), "after exit");
    }
}
