//! Attaching an [`Adapter`] to a directory, and taking it off again.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use fuser::{Config, MountOption, Session, SessionACL};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use peerfs_sys::Capability;

use super::mount_table::{self, Entry};
use super::{Adapter, FuseCache, fusermount};

/// Threads that read requests. Those that have to wait go to a pool.
const SERVING_THREADS: usize = 4;
/// Read-ahead that gives full-size requests (measured: larger is slower).
pub const READ_AHEAD_KB: u64 = 1024;
/// Named by fusermount3 where /etc/fuse.conf does not let users open their mounts to others.
const NOT_FOR_OTHERS: &str = "user_allow_other";

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
    /// Other users may use it, where the mounting user may say so; those who may mount by themselves always do.
    pub allow_other: bool,
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
    /// There is no FUSE.
    #[error("/dev/fuse is missing; load the module (modprobe fuse), or start the container with --device /dev/fuse")]
    NoDevice,
    /// The kernel or fusermount3 refused.
    #[error("mounting on {path} failed: {source}")]
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
    entry: Option<Entry>,
    serving: JoinHandle<io::Result<()>>,
}

impl FuseMount {
    /// Mounts and starts to serve. The mount is usable when this returns.
    pub fn start(adapter: Adapter, cache: &Arc<FuseCache>, options: &FuseOptions) -> Result<FuseMount, MountError> {
        let path = usable_mountpoint(&options.mountpoint)?;
        if !Path::new("/dev/fuse").exists() {
            return Err(MountError::NoDevice);
        }
        let mut config = Config::default();
        config.n_threads = Some(SERVING_THREADS);
        config.mount_options = mount_options(options)?;
        let refused = |source| MountError::Refused { path: path.clone(), source };
        let by_helper = !Capability::SysAdmin.is_held();
        let session = match by_helper {
            true => mount_by_helper(adapter, &path, options, config),
            false => {
                config.acl = SessionACL::All;
                Session::new(adapter, &path, &config)
            }
        };
        let session = session.map_err(refused)?;
        let notifier = session.notifier();
        let mountpoint = path.clone();
        let serve = move || {
            let served = session.run();
            // Only a session that mounted by itself takes its mount off.
            if by_helper && served.is_err() {
                let _gone = fusermount::unmount(&mountpoint, true);
            }
            served
        };
        let serving = std::thread::Builder::new().name("peerfs-serve".into()).spawn(serve).map_err(refused)?;
        let entry = mount_table::entry(&path);
        if let Some(entry) = &entry {
            cache.connect(notifier, nix::sys::stat::makedev(entry.major, entry.minor));
            raise_read_ahead(entry);
        }
        Ok(FuseMount { mountpoint: path, entry, serving })
    }

    /// How the kernel shows it.
    pub fn entry(&self) -> Option<&Entry> {
        self.entry.as_ref()
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

/// Mounts through fusermount3: for the user alone, where the machine does not let users open their mounts to others.
fn mount_by_helper(adapter: Adapter, path: &Path, options: &FuseOptions, config: Config) -> io::Result<Session<Adapter>> {
    let mut list = vec![format!("fsname={}", fusermount::escaped(&options.fsname))];
    list.extend(["subtype=peerfs", "default_permissions", if options.read_only { "ro" } else { "rw" }].map(str::to_owned));
    list.extend(options.generic.iter().cloned());
    let for_others = [list.as_slice(), &["allow_other".to_owned()]].concat();
    let (connection, acl) = match options.allow_other.then(|| fusermount::mount(path, &for_others)) {
        Some(Ok(connection)) => (connection, SessionACL::All),
        Some(Err(error)) if !error.to_string().contains(NOT_FOR_OTHERS) => return Err(error),
        _ => (fusermount::mount(path, &list)?, SessionACL::Owner),
    };
    let session = Session::from_fd(adapter, connection, acl, config);
    if session.is_err() {
        let _gone = fusermount::unmount(path, true);
    }
    session
}

/// Needs root; without it reads come in 128 KiB pieces, which is slower and nothing else.
fn raise_read_ahead(entry: &Entry) {
    let path = entry.read_ahead_setting();
    if let Err(error) = fs::write(&path, READ_AHEAD_KB.to_string()) {
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
        Err(Errno::EPERM) => unmount_by_helper(mountpoint, force),
        Err(error) => Err(error.into()),
    }
}

/// An ordinary user's mounts are taken off by the set-uid helper.
fn unmount_by_helper(mountpoint: &Path, force: bool) -> io::Result<Unmounted> {
    match fusermount::unmount(mountpoint, false) {
        Ok(()) => Ok(Unmounted::Cleanly),
        Err(error) if force && error.raw_os_error() == Some(libc::EBUSY) => {
            fusermount::unmount(mountpoint, true).map(|()| Unmounted::Detached)
        }
        Err(error) => Err(error),
    }
}
