//! From what was typed to what shall be done.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use peerfs_blockdev::DeviceSpec;
use peerfs_blockdev::pci::PciAddress;
use peerfs_fs::server::ServerConfig;

use crate::args::MountArgs;
use crate::failure::Usage;
use crate::mount_options;

/// Aperture of devices that have none of their own.
const DEFAULT_CMB_BYTES: u64 = 64 << 20;

/// The device that a name means. Paths become absolute: a server changes its working directory.
pub fn device(name: &str) -> Result<DeviceSpec> {
    match name.parse::<DeviceSpec>() {
        Ok(device) => device.with_path(absolute),
        Err(error) => Err(Usage(format!("device {error}")).into()),
    }
}

/// An absolute path; symbolic links and what does not exist stay as they are.
pub fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| path.display().to_string())
}

/// What to mount, where and how.
pub struct MountConfig {
    /// The server's part.
    pub server: ServerConfig,
    /// Where the server logs when it runs in the background.
    pub log: Option<PathBuf>,
}

/// Checks the arguments of a mount.
pub fn mount(args: &MountArgs) -> Result<MountConfig> {
    let options = mount_options::parse(&args.options)?;
    let device = device(&args.device)?;
    let device_memory = options.device_memory()?;
    let default_cmb_bytes = (!device.has_aperture()).then_some(DEFAULT_CMB_BYTES);
    one_use_each(&device, &options.importers)?;
    let server = ServerConfig {
        device,
        cmb_bytes: args.cmb.or(options.cmb_bytes).or(default_cmb_bytes),
        mountpoint: absolute(&args.mountpoint)?,
        read_only: options.read_only,
        direct: options.direct,
        deadline: options.deadline,
        pin_quota: options.pin_quota,
        pin_quota_user: options.pin_quota_user,
        commit_interval: options.commit_interval,
        atime: options.atime,
        directory_atime: options.directory_atime,
        synchronous: options.synchronous(),
        fsname: options.fsname,
        generic: options.generic,
        allow_other: options.allow_other,
        grants_by_socket: options.grants_by_socket,
        topology: options.topology.as_deref().map(absolute).transpose()?,
        discard: options.discard,
        faults: options.faults,
        importer_grants: options.importer_grants,
        user_sessions: options.user_sessions,
        importers: options.importers,
        guardian_exe: own_program()?,
        device_memory,
        metrics: args.metrics.or(options.metrics),
    };
    let log = args.log.as_deref().map(absolute).transpose()?;
    Ok(MountConfig { server, log })
}

/// A controller has one user.
fn one_use_each(device: &DeviceSpec, importers: &[(PciAddress, u32)]) -> Result<(), Usage> {
    for (number, (address, _)) in importers.iter().enumerate() {
        let is_storage = matches!(device, DeviceSpec::Nvme(storage, _) if storage == address);
        if is_storage || importers[..number].iter().any(|(other, _)| other == address) {
            let what = if is_storage { "has the volume" } else { "is named twice" };
            return Err(Usage(format!("mount option importer=nvme:{address}: this controller {what}")));
        }
    }
    Ok(())
}

/// This program, for starting it once more.
pub fn own_program() -> Result<PathBuf> {
    std::env::current_exe().context("the path of this program is not known; is /proc mounted?")
}
