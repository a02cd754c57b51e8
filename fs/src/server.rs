//! A mounted volume: all parts put together, and taken apart in the right order.

use std::fs::Permissions;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::{AccessFlags, Uid};
use peerfs_blockdev::nvme::DmaEngine;
use peerfs_blockdev::pci::{Host, PciAddress};
use peerfs_blockdev::{DeviceError, DeviceSpec, OpenMode, OpenedForServing};
use peerfs_http::{BindError, Endpoint, HttpServer};
use peerfs_p2p::devmem::{Pool, PoolConfig};
use peerfs_p2p::topology::{Topology, TopologyError};
use peerfs_p2p::{
    Client, ContextIds, DirectPolicy, Engine, EngineConfig, EngineParts, Exporter, GrantError, GrantId, GrantObject, GrantSocket,
    GrantSource, Guardian, NvmeImporter, PinQuota, SystemClock,
};
use peerfs_sys::Capability;

use crate::bus::{Bus, BusEvents};
use crate::coherence::NoMappings;
use crate::control::{Control, ControlParts, Faults, MountFacts};
use crate::core::{Atime, Core, MountOptions, Synchronous};
use crate::error::FsError;
use crate::fuse::{Adapter, Entry, FuseCache, FuseMount, FuseOptions, MountError};
use crate::limits;
use crate::mapping::{EngineCoherence, FileExporter};
use crate::store::{FormatOptions, OpenOptions, StoreError, Volume};
use crate::types::Timestamp;

/// How long a mount waits for an earlier server of the volume to finish.
pub const LOCK_WAIT: Duration = Duration::from_secs(10);

/// Longest path of a Unix socket, bytes; unix(7).
const SOCKET_PATH_MAX: usize = 107;

/// Everything that can be chosen for a mount.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// What to mount.
    pub device: DeviceSpec,
    /// Size of the software CMB, bytes; 0 mounts without an aperture, `None` with the one that the device has itself.
    pub cmb_bytes: Option<u64>,
    /// Where.
    pub mountpoint: PathBuf,
    /// No writes.
    pub read_only: bool,
    /// Policy of direct mapping.
    pub direct: DirectPolicy,
    /// How long an importer may take to acknowledge a revocation.
    pub deadline: Duration,
    /// What may be pinned on the whole mount.
    pub pin_quota: PinQuota,
    /// What one user may pin.
    pub pin_quota_user: PinQuota,
    /// Longest time a change stays uncommitted without fsync.
    pub commit_interval: Duration,
    /// Access times.
    pub atime: Atime,
    /// Also those of directories.
    pub directory_atime: bool,
    /// What is durable without fsync.
    pub synchronous: Synchronous,
    /// Source shown in /proc/mounts; the device if `None`.
    pub fsname: Option<String>,
    /// Generic mount options (`nodev`, `noexec`, ...).
    pub generic: Vec<String>,
    /// Other users may use the mount, where that is to be asked for.
    pub allow_other: bool,
    /// Hand grants over on a socket even where the mount itself could.
    pub grants_by_socket: bool,
    /// Description of the PCI topology around the storage device; the machine's own if `None`.
    pub topology: Option<PathBuf>,
    /// Tell the device of blocks that are freed, at every commit.
    pub discard: bool,
    /// Decorate the device so that it fails on command.
    pub faults: bool,
    /// Live grants that one session may hold; `None`: the engine's default.
    pub importer_grants: Option<usize>,
    /// Sessions of one user; `None`: the engine's default.
    pub user_sessions: Option<usize>,
    /// The program that runs the guardian: `peerfs`.
    pub guardian_exe: PathBuf,
    /// Controllers that are importers, and the namespaces of theirs that copies are from and to.
    pub importers: Vec<(PciAddress, u32)>,
    /// Memory of a device to be handed out, if any.
    pub device_memory: Option<DeviceMemoryConfig>,
    /// Where to serve the metrics over HTTP, if anywhere.
    pub metrics: Option<SocketAddr>,
}

/// Device memory of a mount. It is volatile: main memory that stands for that of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceMemoryConfig {
    /// Size, bytes.
    pub bytes: u64,
    /// Bounds of the pool.
    pub pool: PoolConfig,
}

/// Why a volume could not be mounted, or closed cleanly.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The storage device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// An importer that the server drives.
    #[error("the importer {0}")]
    Importer(DeviceError),
    /// The volume on it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// File operations could not start or stop.
    #[error("{0}")]
    Core(FsError),
    /// The guardian process.
    #[error("the guardian process ({exe}): {source}", exe = exe.display())]
    Guardian {
        /// Its program.
        exe: PathBuf,
        /// Why it did not start.
        source: std::io::Error,
    },
    /// The socket for grants.
    #[error("the grant socket: {0}")]
    Socket(std::io::Error),
    /// The description of the topology.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// The address for the metrics.
    #[error("metrics: {0}")]
    Metrics(#[from] BindError),
    /// A thread could not be started.
    #[error("a thread could not be started: {0}")]
    Thread(std::io::Error),
    /// The mount itself.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The transport failed while serving.
    #[error("serving requests: {0}")]
    Serving(std::io::Error),
}

/// Context ids out of the volume's never-reused supply.
struct VolumeContextIds(Arc<Core>);

impl ContextIds for VolumeContextIds {
    fn next_id(&self) -> Option<u64> {
        if self.0.volume().read_only() {
            // Nothing can be recorded: a random number of the upper half, which recorded ones never reach.
            return peerfs_sys::random_u64().ok().map(|bits| bits | 1 << 63);
        }
        self.0.reserve_context_ids(1).ok().map(|ids| ids.start)
    }
}

/// Hands out what the mount itself cannot carry.
struct DmabufGrants(Arc<Engine>);

impl GrantSource for DmabufGrants {
    fn take(&self, id: GrantId, client: Client, writable: Option<bool>) -> Result<OwnedFd, GrantError> {
        match self.0.grant(id).ok_or(GrantError::Gone)?.object {
            GrantObject::PinnedDmabuf => GrantSource::take(&*self.0, id, client, writable),
            GrantObject::Window | GrantObject::PinnedMemfd => Err(GrantError::NotOwner),
        }
    }
}

/// A mounted volume that serves requests.
pub struct Server {
    core: Arc<Core>,
    engine: Arc<Engine>,
    exporter: Arc<dyn Exporter>,
    guardian: Arc<Guardian>,
    socket: Option<GrantSocket>,
    bus_events: Option<BusEvents>,
    metrics: Option<HttpServer>,
    mount: FuseMount,
}

impl Server {
    /// Opens the volume and mounts it. It is usable when this returns. `lock`: what else keeps the device from others, for
    /// the guardian to share.
    pub fn start(config: &ServerConfig, lock: Option<OwnedFd>) -> Result<Server, ServerError> {
        raise_limits();
        let lockable_bytes = peerfs_sys::lockable_bytes();
        let mode = if config.read_only { OpenMode::ReadOnly } else { OpenMode::ReadWrite };
        let topology = config.topology.as_deref().map(Topology::read).transpose()?;
        let endpoint = config.metrics.map(Endpoint::bind).transpose()?;
        let OpenedForServing { opened, counters, faults } =
            config.device.open_for_serving(config.cmb_bytes, mode, LOCK_WAIT, config.faults)?;
        if matches!(config.device, DeviceSpec::Mem { .. }) {
            // Its content ends with the server, so nobody can have formatted it.
            Volume::format(Arc::clone(&opened.device), &FormatOptions::default())?;
        }
        let options = OpenOptions { read_only: config.read_only, discard: config.discard, ..OpenOptions::default() };
        // Before the volume counts as open: what may fail for a typing error.
        let importers = config.importers.iter().map(open_importer).collect::<Result<_, _>>()?;
        let aperture = opened.aperture.as_ref().map(|aperture| aperture.info());
        let aperture_bytes =
            aperture.map(|info| (config.cmb_bytes.unwrap_or(opened.device.info().size_bytes), info.capacity_bytes));
        let volume = Volume::open(Arc::clone(&opened.device), &options)?;
        let summary = volume.summary();
        let guardian = Guardian::spawn(&config.guardian_exe, opened.lock.or(lock))
            .map_err(|source| ServerError::Guardian { exe: config.guardian_exe.clone(), source })?;
        let guardian = Arc::new(guardian);

        let options = MountOptions {
            read_only: config.read_only,
            commit_interval: config.commit_interval,
            atime: config.atime,
            directory_atime: config.directory_atime,
            synchronous: config.synchronous,
            ..MountOptions::default()
        };
        let core = Core::open(volume, Arc::clone(&opened.device), Arc::new(NoMappings), options).map_err(ServerError::Core)?;
        // On the machine: the kernel refuses passthrough to the root of a namespace.
        let privileged = Capability::SysAdmin.is_held_on_machine();
        let passthrough = privileged && !config.grants_by_socket && kernel_has_passthrough();
        let dmabufs = peerfs_sys::has_udmabuf();
        let mut engine_config = EngineConfig {
            deadline: config.deadline,
            pin_quota: config.pin_quota,
            pin_quota_user: config.pin_quota_user,
            dmabuf_pins: dmabufs,
            ..EngineConfig::default()
        };
        if let Some(sessions) = config.user_sessions {
            engine_config.sessions_per_user = sessions;
        }
        if let Some(grants) = config.importer_grants {
            engine_config.grants_per_session = grants;
            engine_config.mappings_per_session = engine_config.mappings_per_session.max(grants);
            engine_config.mappings_per_user = engine_config.mappings_per_user.max(grants);
        }
        let engine = Engine::new(
            engine_config,
            EngineParts {
                aperture: opened.aperture.clone(),
                custody: guardian.clone(),
                clock: Arc::new(SystemClock::default()),
                context_ids: Arc::new(VolumeContextIds(Arc::clone(&core))),
            },
        );
        let cache = Arc::new(FuseCache::default());
        let exporter: Arc<dyn Exporter> =
            Arc::new(FileExporter::new(Arc::clone(&core), cache.clone(), config.direct, config.read_only));
        engine.attach_exporter(Arc::downgrade(&exporter));
        let bus = match topology {
            // What the administrator states is not looked at again.
            Some(topology) => {
                engine.attach_topology(topology);
                None
            }
            None => {
                let place = opened.aperture.as_ref().and_then(|aperture| aperture.info().bus);
                Some(Bus::new(Host::system(), place, &engine))
            }
        };
        let bus_events = bus.as_ref().and_then(follow);
        engine.subscribe(&*opened.device).map_err(ServerError::Thread)?;
        core.set_coherence(Arc::new(EngineCoherence::new(&engine)));

        let pool = config.device_memory.as_ref().map(|memory| device_memory(memory, &engine)).transpose()?;
        let socket = if passthrough && !dmabufs {
            None
        } else {
            let path = socket_path(&summary.uuid).map_err(ServerError::Socket)?;
            let source: Arc<dyn GrantSource> = match passthrough {
                // The mount itself carries everything else, and shields it better.
                true => Arc::new(DmabufGrants(engine.clone())),
                false => engine.clone(),
            };
            let socket = GrantSocket::listen(&path, source).map_err(ServerError::Socket)?;
            // Whoever may use the mount may ask; every message is checked against the grant's owner.
            std::fs::set_permissions(&path, Permissions::from_mode(0o666)).map_err(ServerError::Socket)?;
            Some(socket)
        };
        let fsname = config.fsname.clone().unwrap_or_else(|| config.device.to_string());
        let control = Control::new(ControlParts {
            core: Arc::clone(&core),
            engine: Arc::clone(&engine),
            cache: cache.clone(),
            device: opened.device,
            aperture: opened.aperture,
            pool,
            storage: counters,
            importers,
            facts: MountFacts {
                device: config.device.to_string(),
                mountpoint: config.mountpoint.display().to_string(),
                label: summary.label,
                uuid: summary.uuid,
                owner_uid: nix::unistd::geteuid().as_raw(),
                started: now(),
                deadline_ms: u32::try_from(config.deadline.as_millis()).unwrap_or(u32::MAX),
                direct: direct_name(config.direct).to_owned(),
                read_only: config.read_only,
                metrics: endpoint.as_ref().map(Endpoint::address),
            },
            passthrough,
            socket_path: socket.as_ref().map(|socket| socket.path().to_owned()),
            bus,
            faults: faults.map(|device| Faults::new(device, Arc::clone(&engine))),
        });
        let control = Arc::new(control);
        let metrics = endpoint.map(|endpoint| control.serve_metrics(endpoint)).transpose().map_err(ServerError::Thread)?;
        let adapter = Adapter::new(core.clone(), Arc::clone(&control), cache.clone());
        let options = FuseOptions {
            mountpoint: config.mountpoint.clone(),
            fsname,
            read_only: config.read_only,
            generic: config.generic.clone(),
            allow_other: config.allow_other,
        };
        match FuseMount::start(adapter, &cache, &options) {
            Ok(mount) => {
                control.set_limits(limits::limits(&limits::Facts {
                    passthrough,
                    socket_asked: config.grants_by_socket,
                    kernel_has_passthrough: kernel_has_passthrough(),
                    socket: socket.as_ref().map(GrantSocket::path),
                    uid: nix::unistd::geteuid().as_raw(),
                    privileged,
                    traces: Capability::SysPtrace.is_held_on_machine(),
                    initial_namespace: peerfs_sys::in_initial_user_namespace(),
                    aperture_bytes,
                    lockable_bytes,
                    generic: &config.generic,
                    allow_other: config.allow_other,
                    entry: mount.entry(),
                    read_ahead_kb: mount.entry().and_then(read_ahead_kb),
                }));
                Ok(Server { core, engine, exporter, guardian, socket, bus_events, metrics, mount })
            }
            Err(error) => {
                core.close().map_err(ServerError::Core)?;
                Err(error.into())
            }
        }
    }

    /// The absolute mount point.
    pub fn mountpoint(&self) -> PathBuf {
        self.mount.mountpoint().to_owned()
    }

    /// Something that ends every direct mapping, for use before an unmount is forced.
    pub fn engine(&self) -> Arc<Engine> {
        Arc::clone(&self.engine)
    }

    /// Waits until somebody unmounts it, then closes the volume.
    pub fn wait(self) -> Result<(), ServerError> {
        let served = self.mount.join();
        drop(self.metrics);
        drop(self.bus_events);
        // Every window ends before the last commit, so that what peers wrote is in it.
        let ended = self.engine.shut_down();
        drop(self.socket);
        // A window that could not be written back is no reason to lose metadata as well.
        let closed = self.core.close().map_err(ServerError::Core);
        ended?;
        closed?;
        drop(self.exporter);
        drop(self.guardian);
        served.map_err(ServerError::Serving)
    }
}

fn open_importer((address, namespace): &(PciAddress, u32)) -> Result<Arc<NvmeImporter>, ServerError> {
    let engine = DmaEngine::open(*address, *namespace).map_err(ServerError::Importer)?;
    Ok(Arc::new(NvmeImporter::new(*address, engine)))
}

/// In a container without events of its own the tree is read at the mount and when importers come.
fn follow(bus: &Arc<Bus>) -> Option<BusEvents> {
    bus.follow().inspect_err(|error| tracing::warn!(%error, "events of the PCI bus are not heard")).ok()
}

/// A pool over memory of its own, whose aperture is all of it.
fn device_memory(config: &DeviceMemoryConfig, engine: &Arc<Engine>) -> Result<Arc<Pool>, ServerError> {
    let opened = DeviceSpec::Mem(config.bytes).open(None, OpenMode::ReadWrite, Duration::ZERO)?;
    let pool = Pool::new(opened.device, opened.aperture, config.pool);
    pool.attach(engine).map_err(ServerError::Thread)?;
    Ok(pool)
}

/// Name of a policy, as in `-o direct=`.
pub fn direct_name(policy: DirectPolicy) -> &'static str {
    match policy {
        DirectPolicy::Prefer => "prefer",
        DirectPolicy::RespectCache => "respect-cache",
        DirectPolicy::Never => "never",
    }
}

/// FUSE passthrough came with Linux 6.9. A kernel built without it needs `-o grants=socket`, which the log then says.
fn kernel_has_passthrough() -> bool {
    let Ok(system) = nix::sys::utsname::uname() else { return false };
    let release = system.release().to_string_lossy().into_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (6u32, 9u32)
}

fn now() -> Timestamp {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp { seconds: now.as_secs() as i64, nanoseconds: now.subsec_nanos() }
}

/// Where a socket of this user may be, the best place first. `/tmp` has a short name always.
fn socket_bases(uid: Uid) -> [PathBuf; 2] {
    // Root of a namespace that has the machine's may not write to it, nor whoever became another user by su(1).
    let writable = |directory: &PathBuf| nix::unistd::access(directory, AccessFlags::W_OK).is_ok();
    let run = uid.is_root().then(|| PathBuf::from("/run")).filter(writable);
    let own = || std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(writable);
    [run.or_else(own).unwrap_or_else(std::env::temp_dir), PathBuf::from("/tmp")]
}

/// The first of these places in which the name of a socket is not too long.
fn socket_directory(bases: [PathBuf; 2], name: &str, socket: &str) -> PathBuf {
    let [best, short] = bases.map(|base| base.join(name));
    if best.join(socket).as_os_str().len() <= SOCKET_PATH_MAX { best } else { short }
}

/// One socket a volume, so that what a killed server left is replaced by the next. The directory lets others
/// pass, since the socket checks every message's sender itself.
fn socket_path(uuid: &str) -> std::io::Result<PathBuf> {
    let uid = nix::unistd::geteuid();
    let name = match peerfs_sys::in_initial_user_namespace() {
        true => format!("peerfs-{uid}"),
        // Numbers of users mean something in their namespace only.
        false => format!("peerfs-{uid}-{}", std::fs::metadata("/proc/self/ns/user")?.ino()),
    };
    let socket = format!("{uuid}.sock");
    let directory = socket_directory(socket_bases(uid), &name, &socket);
    match std::fs::DirBuilder::new().mode(0o711).create(&directory) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let metadata = std::fs::symlink_metadata(&directory)?;
    if !metadata.is_dir() || metadata.uid() != uid.as_raw() {
        let message = format!("{} is not a directory of this user; remove it", directory.display());
        return Err(std::io::Error::other(message));
    }
    let path = directory.join(socket);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(path),
    }
}

fn read_ahead_kb(entry: &Entry) -> Option<u64> {
    std::fs::read_to_string(entry.read_ahead_setting()).ok()?.trim().parse().ok()
}

/// As far as this user may: every window takes two descriptors, and its memory is locked.
fn raise_limits() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    for resource in [Resource::RLIMIT_NOFILE, Resource::RLIMIT_MEMLOCK] {
        if let Err(error) = getrlimit(resource).and_then(|(_, hard)| setrlimit(resource, hard, hard)) {
            tracing::debug!(?resource, %error, "the limit stays as it is");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_socket_whose_name_would_be_too_long_is_in_tmp() {
        let place = |base: &str| socket_directory([base.into(), "/tmp".into()], "peerfs-7", "uuid.sock");
        assert_eq!(place("/run/user/7"), Path::new("/run/user/7/peerfs-7"));
        let long = "/x".repeat(50);
        assert_eq!(place(&long[..88]).join("uuid.sock").as_os_str().len(), SOCKET_PATH_MAX);
        assert_eq!(place(&long), Path::new("/tmp/peerfs-7"));
    }
}
