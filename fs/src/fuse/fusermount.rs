//! The set-uid helper of package `fuse3`, which mounts and unmounts for those who may not do it themselves.

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

const PROGRAM: &str = "fusermount3";
/// Names the descriptor on which the helper sends that of the connection.
const SOCKET_VARIABLE: &str = "_FUSE_COMMFD";
/// What it says where only root may have FUSE, and what to do then: it opens the device as the user.
const NO_ACCESS: &str = "failed to open /dev/fuse: Permission denied";
const NOT_INSTALLED: &str = "fusermount3 is not there: install the package fuse3, or run as root";

/// Mounts; answers the connection to the kernel. `options` are the helper's.
///
/// # Errors
/// What the helper said, or that it is missing.
pub fn mount(mountpoint: &Path, options: &[String]) -> io::Result<OwnedFd> {
    let (ours, its) = UnixStream::pair()?;
    let mut command = Command::new(PROGRAM);
    command.arg("-o").arg(options.join(",")).arg("--").arg(mountpoint);
    // The socket is its standard input: that descriptor is inherited, and no other process sees it meanwhile.
    command.stdin(OwnedFd::from(its)).env(SOCKET_VARIABLE, "0").stdout(Stdio::null()).stderr(Stdio::piped());
    let mut helper = command.spawn().map_err(missing)?;
    drop(command);
    let mut said = String::new();
    if let Some(mut stderr) = helper.stderr.take() {
        stderr.read_to_string(&mut said)?;
    }
    if !helper.wait()?.success() {
        let said = line(&said);
        return Err(io::Error::other(match said.as_str() {
            NO_ACCESS => format!("{said}; let users have it (chmod 666 /dev/fuse), or run as root"),
            _ => said,
        }));
    }
    let (_, connection) = peerfs_sys::receive_with_fd(&ours, &mut [0])?;
    connection.ok_or_else(|| io::Error::other(format!("{PROGRAM} answered without a descriptor")))
}

/// Unmounts; a busy mount only if `lazy`, by detaching it.
///
/// # Errors
/// EBUSY, what the helper said, or that it is missing.
pub fn unmount(mountpoint: &Path, lazy: bool) -> io::Result<()> {
    let mut command = Command::new(PROGRAM);
    command.arg("-u").args(lazy.then_some("-z")).arg("--").arg(mountpoint);
    let ran = command.output().map_err(missing)?;
    let said = line(&String::from_utf8_lossy(&ran.stderr));
    match ran.status.success() {
        true => Ok(()),
        false if said.ends_with("Device or resource busy") => Err(io::Error::from_raw_os_error(libc::EBUSY)),
        false => Err(io::Error::other(said)),
    }
}

/// A value in a list of options, as the helper takes it.
pub fn escaped(value: &str) -> String {
    value.replace('\\', r"\\").replace(',', r"\,")
}

fn missing(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::NotFound => io::Error::other(NOT_INSTALLED),
        _ => error,
    }
}

/// The last thing it said, without its name.
fn line(said: &str) -> String {
    let last = said.trim().lines().next_back().unwrap_or("fusermount3 failed without a word");
    last.strip_prefix(PROGRAM).and_then(|rest| rest.strip_prefix(": ")).unwrap_or(last).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_keep_their_commas() {
        assert_eq!(escaped(r"image:/a,b\c"), r"image:/a\,b\\c");
    }

    #[test]
    fn the_last_line_counts() {
        let said = "fusermount3: unsafe option dev ignored\nfusermount3: user has no write access to mountpoint /mnt\n";
        assert_eq!(line(said), "user has no write access to mountpoint /mnt");
        assert_eq!(line(""), "fusermount3 failed without a word");
    }
}
