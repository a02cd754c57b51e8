//! The parts of a mount, put together as a server does, without a transport.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use peerfs_blockdev::{BlockDevice, Cmb, FaultDevice, MemDevice};
use peerfs_fs::coherence::NoMappings;
use peerfs_fs::core::{Atime, Core, MountOptions};
use peerfs_fs::mapping::{EngineCoherence, FileExporter};
use peerfs_fs::store::{FormatOptions, OpenOptions, Volume};
use peerfs_p2p::{ContextIds, DirectPolicy, Engine, EngineConfig, EngineParts, Exporter, PinQuota};

use super::clock::JumpClock;
use super::pages::PageCache;
use super::racing::RacingCustody;

/// A commit happens when a step asks for it.
const NEVER: Duration = Duration::from_secs(24 * 3600);

/// The storage: it outlives mounts.
pub(super) struct Disk {
    ring: Arc<peerfs_blockdev::Engine>,
    pub(super) power: FaultDevice,
    cmb_bytes: u64,
}

impl Disk {
    /// A formatted device.
    pub(super) fn new(size_bytes: u64, cmb_bytes: u64, seed: u64) -> Result<Disk> {
        let memory = Arc::new(MemDevice::new(size_bytes)?);
        let ring = Arc::clone(memory.engine());
        let power = FaultDevice::new(memory, seed);
        Volume::format(Arc::new(power.clone()), &FormatOptions::default())?;
        Ok(Disk { ring, power, cmb_bytes })
    }
}

struct VolumeContextIds(Arc<Core>);

impl ContextIds for VolumeContextIds {
    fn next_id(&self) -> Option<u64> {
        self.0.reserve_context_ids(1).ok().map(|ids| ids.start)
    }
}

/// A mounted volume.
pub(super) struct System {
    pub(super) core: Arc<Core>,
    pub(super) engine: Arc<Engine>,
    pub(super) cache: Arc<PageCache>,
    pub(super) clock: Arc<JumpClock>,
    pub(super) custody: Arc<RacingCustody>,
    _exporter: Arc<dyn Exporter>,
}

impl System {
    /// Mounts.
    pub(super) fn open(disk: &Disk) -> Result<System> {
        let overlay = Cmb::new(Arc::new(disk.power.clone()), Arc::clone(&disk.ring), disk.cmb_bytes);
        let device: Arc<dyn BlockDevice> = Arc::new(overlay.clone());
        let volume = Volume::open(Arc::clone(&device), &OpenOptions::default())?;
        let options = MountOptions { read_only: false, commit_interval: NEVER, atime: Atime::Never, ..MountOptions::default() };
        let core = Core::open(volume, device, Arc::new(NoMappings), options).map_err(|error| anyhow::anyhow!("{error}"))?;
        let clock = Arc::new(JumpClock::default());
        let cache = Arc::new(PageCache::new(&core));
        let custody = Arc::new(RacingCustody::new(cache.clone()));
        let engine = Engine::new(
            EngineConfig { pin_quota: PinQuota::Bytes(0), ..EngineConfig::default() },
            EngineParts {
                aperture: Some(Arc::new(overlay)),
                custody: custody.clone(),
                clock: clock.clone(),
                context_ids: Arc::new(VolumeContextIds(Arc::clone(&core))),
            },
        );
        let exporter: Arc<dyn Exporter> =
            Arc::new(FileExporter::new(Arc::clone(&core), cache.clone(), DirectPolicy::Prefer, false));
        engine.attach_exporter(Arc::downgrade(&exporter));
        core.set_coherence(Arc::new(EngineCoherence::new(&engine)));
        Ok(System { core, engine, cache, clock, custody, _exporter: exporter })
    }

    /// Unmounts in order. Handles and sessions are closed.
    pub(super) fn close(self) -> Result<()> {
        self.engine.shut_down()?;
        self.core.close().map_err(|error| anyhow::anyhow!("{error}")).context("closing the volume")
    }
}
