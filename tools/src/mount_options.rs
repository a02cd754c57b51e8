//! The comma list after `-o`: what mount(8) takes, and what is ours.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use peerfs_blockdev::pci::PciAddress;
use peerfs_blockdev::{DeviceSpec, NvmePart, parse_size};
use peerfs_fs::core::{Atime, Synchronous};
use peerfs_fs::server::DeviceMemoryConfig;
use peerfs_http::parse_address;
use peerfs_p2p::devmem::PoolConfig;
use peerfs_p2p::{DirectPolicy, PinQuota};

use crate::failure::Usage;

/// Options that say nothing to the server: they are for mount(8), or name what is so anyway.
const WITHOUT_EFFECT: &[&str] = &[
    "defaults",
    "remount",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "nofail",
    "_netdev",
    "loud",
    "silent",
    "default_permissions",
    "norelatime",
    "lazytime",
    "nolazytime",
    "nomand",
    "noiversion",
];
/// Options handed to the kernel.
const GENERIC: &[&str] = &["dev", "nodev", "suid", "nosuid", "exec", "noexec", "dirsync", "sync", "async"];

/// Options of a mount, with their defaults where none was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountOptions {
    /// No writes.
    pub read_only: bool,
    /// Access times.
    pub atime: Atime,
    /// Access times of directories too.
    pub directory_atime: bool,
    /// Generic options for the kernel.
    pub generic: Vec<String>,
    /// Users who may not mount by themselves want others to use the mount.
    pub allow_other: bool,
    /// Source shown in the mount table.
    pub fsname: Option<String>,
    /// Size of the software CMB, bytes; 0 for none.
    pub cmb_bytes: Option<u64>,
    /// Policy of direct mapping.
    pub direct: DirectPolicy,
    /// How long an importer may take to acknowledge a revocation.
    pub deadline: Duration,
    /// What may be pinned on the whole mount.
    pub pin_quota: PinQuota,
    /// What one user may pin.
    pub pin_quota_user: PinQuota,
    /// Longest time a change stays uncommitted.
    pub commit_interval: Duration,
    /// Grants go over a socket even where the mount could carry them.
    pub grants_by_socket: bool,
    /// Description of the PCI topology.
    pub topology: Option<PathBuf>,
    /// The device is told of blocks that are freed.
    pub discard: bool,
    /// The device fails on command.
    pub faults: bool,
    /// Live grants that one session may hold.
    pub importer_grants: Option<usize>,
    /// Sessions of one user.
    pub user_sessions: Option<usize>,
    /// Controllers that are importers, and their namespaces.
    pub importers: Vec<(PciAddress, u32)>,
    /// Where to serve the metrics.
    pub metrics: Option<SocketAddr>,
    /// Device memory, bytes.
    pub devmem_bytes: Option<u64>,
    /// Main memory that device memory may move to, bytes.
    pub devmem_main_bytes: Option<u64>,
    /// Device memory of one user, bytes.
    pub devmem_user_bytes: Option<u64>,
    /// Device memory of one process, bytes.
    pub devmem_process_bytes: Option<u64>,
}

impl Default for MountOptions {
    fn default() -> Self {
        MountOptions {
            read_only: false,
            atime: Atime::default(),
            directory_atime: true,
            generic: Vec::new(),
            allow_other: false,
            fsname: None,
            cmb_bytes: None,
            direct: DirectPolicy::Prefer,
            deadline: Duration::from_millis(100),
            pin_quota: PinQuota::Percent(25),
            pin_quota_user: PinQuota::Percent(25),
            commit_interval: Duration::from_secs(5),
            grants_by_socket: false,
            topology: None,
            discard: false,
            faults: false,
            importer_grants: None,
            user_sessions: None,
            importers: Vec::new(),
            metrics: None,
            devmem_bytes: None,
            devmem_main_bytes: None,
            devmem_user_bytes: None,
            devmem_process_bytes: None,
        }
    }
}

/// Parses all `-o` lists of a command line; of contradicting options the last counts.
pub fn parse(lists: &[String]) -> Result<MountOptions, Usage> {
    let mut options = MountOptions::default();
    for option in lists.iter().flat_map(|list| list.split(',')).filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            Some((name, value)) => options.set(name, value)?,
            None => options.set_flag(option)?,
        }
    }
    options.device_memory()?;
    Ok(options)
}

impl MountOptions {
    /// What is durable without fsync.
    pub fn synchronous(&self) -> Synchronous {
        let is_given = |name| self.generic.iter().any(|option| option == name);
        match (is_given("sync"), is_given("dirsync")) {
            (true, _) => Synchronous::Everything,
            (false, true) => Synchronous::Names,
            (false, false) => Synchronous::Nothing,
        }
    }

    /// What the options say of device memory. As much main memory as the device has, and no limits below all of both,
    /// unless they are given.
    pub fn device_memory(&self) -> Result<Option<DeviceMemoryConfig>, Usage> {
        let bounds = [
            ("devmem_main", self.devmem_main_bytes),
            ("devmem_user_limit", self.devmem_user_bytes),
            ("devmem_process_limit", self.devmem_process_bytes),
        ];
        let Some(bytes) = self.devmem_bytes.filter(|bytes| *bytes > 0) else {
            return match bounds.iter().find(|bound| bound.1.is_some()) {
                Some((name, _)) => Err(Usage(format!("mount option {name}: there is no device memory without devmem=SIZE"))),
                None => Ok(None),
            };
        };
        let main_bytes_max = self.devmem_main_bytes.unwrap_or(bytes);
        let user_bytes_max = self.devmem_user_bytes.unwrap_or(bytes.saturating_add(main_bytes_max));
        let pool = PoolConfig {
            main_bytes_max,
            user_bytes_max,
            process_bytes_max: self.devmem_process_bytes.unwrap_or(user_bytes_max),
            user_allocations_max: PoolConfig::USER_ALLOCATIONS_MAX,
        };
        Ok(Some(DeviceMemoryConfig { bytes, pool }))
    }

    fn set_flag(&mut self, flag: &str) -> Result<(), Usage> {
        match flag {
            "ro" => self.read_only = true,
            "rw" => self.read_only = false,
            "noatime" => self.set_atime(Atime::Never),
            "strictatime" => self.set_atime(Atime::Always),
            "relatime" | "nostrictatime" | "atime" => self.set_atime(Atime::Relative),
            "discard" => self.discard = true,
            "nodiscard" => self.discard = false,
            "diratime" => self.directory_atime = true,
            "nodiratime" => self.directory_atime = false,
            "faults" => self.faults = true,
            "allow_other" => self.allow_other = true,
            _ if GENERIC.contains(&flag) => self.set_generic(flag),
            _ if WITHOUT_EFFECT.contains(&flag) || flag.starts_with("x-") => {}
            _ => return Err(unknown(flag)),
        }
        Ok(())
    }

    fn set_atime(&mut self, atime: Atime) {
        self.atime = atime;
        self.set_generic(if atime == Atime::Never { "noatime" } else { "atime" });
    }

    /// Hands an option to the kernel, in place of its opposite.
    fn set_generic(&mut self, flag: &str) {
        let opposite = match flag {
            "sync" => "async".to_owned(),
            "async" => "sync".to_owned(),
            _ => flag.strip_prefix("no").map_or_else(|| format!("no{flag}"), str::to_owned),
        };
        self.generic.retain(|known| *known != flag && *known != opposite);
        self.generic.push(flag.to_owned());
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), Usage> {
        match name {
            "fsname" => self.fsname = Some(value.to_owned()),
            "cmb" => self.cmb_bytes = Some(size(name, value)?),
            "devmem" => self.devmem_bytes = Some(size(name, value)?),
            "devmem_main" => self.devmem_main_bytes = Some(size(name, value)?),
            "devmem_user_limit" => self.devmem_user_bytes = Some(size(name, value)?),
            "devmem_process_limit" => self.devmem_process_bytes = Some(size(name, value)?),
            "direct" => self.direct = policy(value)?,
            "deadline_ms" => self.deadline = Duration::from_millis(number(name, value, 1, 60_000)?),
            "pin_quota" => self.pin_quota = pin_quota(name, value)?,
            "pin_quota_user" => self.pin_quota_user = pin_quota(name, value)?,
            "commit" => self.commit_interval = Duration::from_secs(number(name, value, 1, 3600)?),
            "grants" => self.grants_by_socket = grants(value)?,
            "topology" if value.is_empty() => return Err(bad(name, value, "name a file")),
            "topology" => self.topology = Some(PathBuf::from(value)),
            "importer_grants" => self.importer_grants = Some(number(name, value, 1, 4 << 20)? as usize),
            "user_sessions" => self.user_sessions = Some(number(name, value, 1, 8192)? as usize),
            "metrics" => self.metrics = Some(parse_address(value).map_err(|error| bad(name, value, &error.to_string()))?),
            "importer" => self.importers.push(importer(value)?),
            "transport" if value == "fuse" => {}
            "transport" => return Err(bad(name, value, "only `fuse` is built into this version")),
            _ if name.starts_with("x-") || matches!(name, "comment" | "user" | "helper" | "uhelper") => {}
            _ => return Err(unknown(name)),
        }
        Ok(())
    }
}

fn size(name: &str, value: &str) -> Result<u64, Usage> {
    parse_size(value).map_err(|error| bad(name, value, &error.to_string()))
}

fn policy(value: &str) -> Result<DirectPolicy, Usage> {
    match value {
        "prefer" => Ok(DirectPolicy::Prefer),
        "respect-cache" => Ok(DirectPolicy::RespectCache),
        "never" => Ok(DirectPolicy::Never),
        _ => Err(bad("direct", value, "give prefer, respect-cache or never")),
    }
}

/// A size, or a share of the aperture.
fn pin_quota(name: &str, value: &str) -> Result<PinQuota, Usage> {
    let wrong = || bad(name, value, "give a size, or 0% to 100% of the aperture");
    match value.strip_suffix('%') {
        Some(percent) => match percent.parse() {
            Ok(percent) if percent <= 100 => Ok(PinQuota::Percent(percent)),
            _ => Err(wrong()),
        },
        None => parse_size(value).map(PinQuota::Bytes).map_err(|_| wrong()),
    }
}

fn grants(value: &str) -> Result<bool, Usage> {
    match value {
        "passthrough" => Ok(false),
        "socket" => Ok(true),
        _ => Err(bad("grants", value, "give passthrough or socket")),
    }
}

/// A controller, of which a namespace takes part: the first, if no other is named.
fn importer(value: &str) -> Result<(PciAddress, u32), Usage> {
    match value.parse() {
        Ok(DeviceSpec::Nvme(address, NvmePart::Namespace(id))) => Ok((address, id)),
        _ => Err(bad("importer", value, "give nvme:BDF or nvme:BDF/nsN, for example nvme:0000:01:00.0")),
    }
}

fn number(name: &str, value: &str, least: u64, most: u64) -> Result<u64, Usage> {
    match value.parse() {
        Ok(number) if (least..=most).contains(&number) => Ok(number),
        _ => Err(bad(name, value, &format!("give a number from {least} to {most}"))),
    }
}

fn unknown(name: &str) -> Usage {
    Usage(format!("mount option `{name}` is not known; peerfs mount --help lists them"))
}

fn bad(name: &str, value: &str, why: &str) -> Usage {
    Usage(format!("mount option {name}={value}: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(list: &str) -> Result<MountOptions, String> {
        parse(&[list.to_owned()]).map_err(|error| error.to_string())
    }

    #[test]
    fn the_last_of_contradicting_options_counts() {
        let options = parse(&["ro,nodev,cmb=1M".into(), "rw,cmb=0,direct=never".into()]).expect("all known");
        assert!(!options.read_only);
        assert_eq!((options.cmb_bytes, options.direct), (Some(0), DirectPolicy::Never));
        assert_eq!(options.generic, ["nodev"]);
        let options = parsed("nosuid,noexec,async,noatime,dev,suid,sync,atime,suid").expect("all known");
        assert_eq!(options.generic, ["noexec", "dev", "sync", "atime", "suid"]);
        assert_eq!(options.atime, Atime::Relative);
        assert_eq!(options.synchronous(), Synchronous::Everything);
        assert_eq!(parsed("sync,dirsync,async").expect("all known").synchronous(), Synchronous::Names);
        assert_eq!(parsed("noatime").expect("all known").synchronous(), Synchronous::Nothing);
    }

    #[test]
    fn device_memory_is_bounded() {
        let config = |list| parsed(list).expect("all known").device_memory().expect("consistent");
        assert_eq!(config("ro"), None);
        let all = config("devmem=8M").expect("some");
        assert_eq!((all.bytes, all.pool.main_bytes_max, all.pool.user_bytes_max), (8 << 20, 8 << 20, 16 << 20));
        let some = config("devmem=8M,devmem_main=0,devmem_user_limit=2M,devmem_process_limit=1M").expect("some").pool;
        assert_eq!((some.main_bytes_max, some.user_bytes_max, some.process_bytes_max), (0, 2 << 20, 1 << 20));
    }

    #[test]
    fn everything_of_mount_8_passes() {
        let options = parsed("defaults,strictatime,relatime,noatime,_netdev,x-systemd.automount,x-a=b,,").expect("all known");
        assert_eq!(options.atime, Atime::Never);
        assert_eq!(options.generic, ["noatime"]);
    }

    #[test]
    fn importers_are_controllers() {
        let options = parsed("importer=nvme:0000:01:00.0,importer=nvme:0000:02:00.0/ns3").expect("all known");
        let named: Vec<_> = options.importers.iter().map(|(address, id)| (address.to_string(), *id)).collect();
        assert_eq!(named, [("0000:01:00.0".to_owned(), 1), ("0000:02:00.0".to_owned(), 3)]);
    }

    #[test]
    fn quotas_are_sizes_or_percents() {
        let options = parsed("pin_quota=50%,pin_quota_user=4M").expect("all known");
        assert_eq!((options.pin_quota, options.pin_quota_user), (PinQuota::Percent(50), PinQuota::Bytes(4 << 20)));
    }

    #[test]
    fn errors_name_the_option() {
        for bad in [
            "devmem_main=1M",
            "devmem=1Q",
            "devmem=0,devmem_user_limit=1M",
            "nonsense",
            "nonsense=1",
            "deadline_ms=0",
            "deadline_ms=60001",
            "commit=x",
            "direct=no",
            "cmb=1Q",
            "grants=x",
            "pin_quota=101%",
            "pin_quota_user=x",
            "topology=",
            "importer_grants=0",
            "user_sessions=8193",
            "importer=cpu",
            "metrics=example.com:80",
            "importer=nvme:0000:01:00.0/pmr",
        ] {
            let error = parsed(bad).expect_err(bad);
            assert!(error.contains(bad.split('=').next().unwrap_or(bad)), "{error}");
        }
    }
}
