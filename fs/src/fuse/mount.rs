//! Attaching an [`Adapter`] to a directory, and taking it off again.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use fuser::{Config, MountOption, Session, SessionACL};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

use super::{Adapter, FuseCache};

/// Threads that read requests. Those that have to wait go to a pool.
const SERVING_THREADS: usize = 4;
/// Read-ahead that gives full-size requests (measured: larger is slower).
const READ_AHEAD_KB: &str = "1024";

/// How to mount.
#[derive(Debug, Clone)]
pub struct FuseOptions {
    /// Where.
    pub mountpoint: PathBuf,
    /// Source shown in /proc/mounts.
    pub fsname: String,
    /// No writes.
    pub read_only: bool,
    /// Generic mount options (`nodev`, `noexec`, ...), as mount(8) names them.
    pub generic: Vec<String>,
}

/// Why a mount failed.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The mount point cannot be used.
    #[error("{path}: {reason}")]
    MountPoint {
        /// As given.
        path: PathBuf,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// The kernel or fusermount3 refused.
    #[error("mounting on {path} failed: {source} (is /dev/fuse there, and may this user mount?)")]
    Refused {
        /// As given.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// An option that mount(8) does not have either.
    #[error("mount option `{0}` is not known; see peerfs mount --help")]
    UnknownOption(String),
}

/// A mount that serves requests.
pub struct FuseMount {
    mountpoint: PathBuf,
    serving: JoinHandle<io::Result<()>>,
}

impl FuseMount {
    /// Mounts and starts to serve. The mount is usable when this returns.
    pub fn start(adapter: Adapter, cache: &Arc<FuseCache>, options: &FuseOptions) -> Result<FuseMount, MountError> {
        let path = usable_mountpoint(&options.mountpoint)?;
        let mut config = Config::default();
        config.acl = if nix::unistd::geteuid().is_root() { SessionACL::All } else { SessionACL::Owner };
        config.n_threads = Some(SERVING_THREADS);
        config.mount_options = mount_options(options)?;
        let refused = |source| MountError::Refused { path: path.clone(), source };
        let session = Session::new(adapter, &path, &config).map_err(refused)?;
        let notifier = session.notifier();
        let serving = std::thread::Builder::new().name("peerfs-serve".into()).spawn(move || session.run()).map_err(refused)?;
        if let Some((major, minor)) = mounted_device(&path) {
            cache.connect(notifier, nix::sys::stat::makedev(major, minor));
            raise_read_ahead(major, minor);
        }
        Ok(FuseMount { mountpoint: path, serving })
    }

    /// The absolute mount point.
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Waits until the filesystem was unmounted, by whomever.
    pub fn join(self) -> io::Result<()> {
        self.serving.join().map_err(|_| io::Error::other("the serving thread panicked"))?
    }
}

fn usable_mountpoint(path: &Path) -> Result<PathBuf, MountError> {
    let bad = |reason: String| MountError::MountPoint { path: path.to_owned(), reason };
    // A path to a dead mount resolves; only a look at what is there fails.
    let refused = |error: io::Error| match error.raw_os_error() {
        Some(libc::ENOTCONN) => bad("a dead mount is still there; run peerfs umount on it first".into()),
        Some(libc::ENOENT) => bad("no such directory; make it first".into()),
        _ => bad(error.to_string()),
    };
    let absolute = path.canonicalize().map_err(refused)?;
    let metadata = fs::metadata(&absolute).map_err(refused)?;
    if !metadata.is_dir() {
        return Err(bad("not a directory; name an empty directory".into()));
    }
    let mut entries = fs::read_dir(&absolute).map_err(refused)?;
    if entries.next().is_some() {
        return Err(bad("the directory is not empty; its content would be hidden. Name an empty one".into()));
    }
    Ok(absolute)
}

fn mount_options(options: &FuseOptions) -> Result<Vec<MountOption>, MountError> {
    let mut list = vec![
        MountOption::FSName(options.fsname.clone()),
        // Not `Subtype`, of which only fusermount3 would hear.
        MountOption::CUSTOM("subtype=peerfs".into()),
        MountOption::DefaultPermissions,
        if options.read_only { MountOption::RO } else { MountOption::RW },
    ];
    for option in &options.generic {
        list.push(match option.as_str() {
            "dev" => MountOption::Dev,
            "nodev" => MountOption::NoDev,
            "suid" => MountOption::Suid,
            "nosuid" => MountOption::NoSuid,
            "exec" => MountOption::Exec,
            "noexec" => MountOption::NoExec,
            "atime" => MountOption::Atime,
            "noatime" => MountOption::NoAtime,
            "dirsync" => MountOption::DirSync,
            "sync" => MountOption::Sync,
            "async" => MountOption::Async,
            other => return Err(MountError::UnknownOption(other.to_owned())),
        });
    }
    Ok(list)
}

/// Device numbers of the mount on `path`, from the newest entry of the mount table.
fn mounted_device(path: &Path) -> Option<(u64, u64)> {
    let table = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let device = table.lines().rev().find_map(|line| {
        let mut fields = line.split(' ');
        let device = fields.nth(2)?;
        let target = fields.nth(1)?;
        (unescape(target) == path.as_os_str().as_encoded_bytes()).then(|| device.to_owned())
    })?;
    let (major, minor) = device.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The mount table writes blanks and backslashes as octal escapes.
fn unescape(field: &str) -> Vec<u8> {
    let bytes = field.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escape = field.get(at + 1..at + 4).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match (bytes[at], escape) {
            (b'\\', Some(byte)) => {
                out.push(byte);
                at += 4;
            }
            (byte, _) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    out
}

/// Needs root; without it reads come in 128 KiB pieces, which is slower and nothing else.
fn raise_read_ahead(major: u64, minor: u64) {
    let path = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    if let Err(error) = fs::write(&path, READ_AHEAD_KB) {
        tracing::debug!(%path, %error, "read-ahead stays at its default");
    }
}

/// How an unmount ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unmounted {
    /// At once.
    Cleanly,
    /// Detached: programs that still have files open keep the old tree until they close them.
    Detached,
}

/// Takes a mount off. With `force` a busy one is detached.
pub fn unmount(mountpoint: &Path, force: bool) -> io::Result<Unmounted> {
    match umount2(mountpoint, MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) => Ok(Unmounted::Cleanly),
        Err(Errno::EBUSY) if force => {
            umount2(mountpoint, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)?;
            Ok(Unmounted::Detached)
        }
        Err(Errno::EPERM) => fusermount(mountpoint, force),
        Err(error) => Err(error.into()),
    }
}

/// An ordinary user's mounts are taken off by the set-uid helper.
fn fusermount(mountpoint: &Path, force: bool) -> io::Result<Unmounted> {
    let run = |lazy: bool| {
        let mut command = std::process::Command::new("fusermount3");
        command.arg("-u").args(lazy.then_some("-z")).arg("--").arg(mountpoint).output()
    };
    let plain = run(false)?;
    if plain.status.success() {
        return Ok(Unmounted::Cleanly);
    }
    let message = String::from_utf8_lossy(&plain.stderr).trim().to_owned();
    if !message.contains("busy") {
        return Err(io::Error::other(message));
    }
    if force && run(true)?.status.success() {
        return Ok(Unmounted::Detached);
    }
    Err(io::Error::from_raw_os_error(libc::EBUSY))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_table_escapes() {
        assert_eq!(unescape(r"/mnt/a\040b\134c"), b"/mnt/a b\\c");
        assert_eq!(unescape(r"/plain\"), b"/plain\\");
    }
}
