//! A server without a kernel: operations, engine and control side on a volume in memory.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use peerfs_blockdev::{Aperture, DeviceSpec, OpenMode};
use peerfs_fs::coherence::NoMappings;
use peerfs_fs::control::{Control, ControlParts, MountFacts};
use peerfs_fs::core::{Core, MountOptions};
use peerfs_fs::mapping::{EngineCoherence, FileExporter};
use peerfs_fs::ops::Operations;
use peerfs_fs::store::{FormatOptions, OpenOptions, Volume};
use peerfs_fs::types::{Handle, Ino, OpenFlags, Timestamp, WriteOrigin};
use peerfs_p2p::{DirectPolicy, Engine, EngineConfig, EngineParts, Exporter, GrantSocket, MemoryCustody, SystemClock};
use tempfile::TempDir;

use super::DEADLINE;
pub(super) use crate::headless::caller;
use crate::headless::{Ids, NoCache};

const FILE_BYTES: usize = 5 << 20;

/// Everything behind the transport.
pub(super) struct Stage {
    pub(super) control: Arc<Control>,
    engine: Arc<Engine>,
    aperture: Arc<dyn Aperture>,
    pub(super) socket: GrantSocket,
    /// A file and its open handles: for reading, for writing, past the cache.
    pub(super) file: (Ino, Vec<Handle>),
    _exporter: Arc<dyn Exporter>,
    _directory: TempDir,
}

impl Stage {
    pub(super) fn new() -> Result<Stage> {
        let directory = tempfile::tempdir()?;
        let opened = DeviceSpec::Mem(64 << 20).open(Some(8 << 20), OpenMode::ReadWrite, std::time::Duration::ZERO)?;
        let aperture = opened.aperture.clone().context("memory has an aperture")?;
        Volume::format(Arc::clone(&opened.device), &FormatOptions::default())?;
        let volume = Volume::open(Arc::clone(&opened.device), &OpenOptions::default())?;
        let summary = volume.summary();
        let core = Core::open(volume, Arc::clone(&opened.device), Arc::new(NoMappings), MountOptions::default())?;
        let parts = EngineParts {
            aperture: Some(Arc::clone(&aperture)),
            custody: Arc::new(MemoryCustody::default()),
            clock: Arc::new(SystemClock::default()),
            context_ids: Arc::new(Ids(Arc::clone(&core))),
        };
        let engine = Engine::new(EngineConfig { deadline: DEADLINE, ..EngineConfig::default() }, parts);
        let cache = Arc::new(NoCache);
        let exporter: Arc<dyn Exporter> =
            Arc::new(FileExporter::new(Arc::clone(&core), cache.clone(), DirectPolicy::Prefer, false));
        engine.attach_exporter(Arc::downgrade(&exporter));
        core.set_coherence(Arc::new(EngineCoherence::new(&engine)));
        let socket = GrantSocket::listen(&directory.path().join("grants"), engine.clone())?;
        let control = Control::new(ControlParts {
            storage: Arc::default(),
            importers: Vec::new(),
            core: Arc::clone(&core),
            engine: Arc::clone(&engine),
            cache: cache.clone(),
            passthrough: false,
            bus: None,
            faults: None,
            pool: None,
            device: opened.device,
            aperture: opened.aperture,
            facts: MountFacts {
                device: "mem".to_owned(),
                mountpoint: PathBuf::from("/nowhere").display().to_string(),
                label: summary.label,
                uuid: summary.uuid,
                owner_uid: nix::unistd::geteuid().as_raw(),
                started: Timestamp { seconds: 0, nanoseconds: 0 },
                deadline_ms: DEADLINE.as_millis() as u32,
                direct: "prefer".to_owned(),
                read_only: false,
                metrics: None,
            },
            socket_path: Some(socket.path().to_owned()),
        });
        let file = prepare(&core)?;
        let control = Arc::new(control);
        Ok(Stage { control, engine, aperture, socket, file, _exporter: exporter, _directory: directory })
    }

    /// All sessions are closed: no mapping, no window.
    pub(super) fn assert_nothing_is_left(&self) -> Result<()> {
        ensure!(!self.engine.is_mapped(None), "something is mapped although every session is closed");
        let info = self.aperture.info();
        ensure!(info.used_bytes == 0 && info.windows == 0, "windows are left: {info:?}");
        Ok(())
    }
}

fn prepare(core: &Arc<Core>) -> Result<(Ino, Vec<Handle>)> {
    let root = 1;
    let flags = |read, write, direct| OpenFlags { read, write, direct, ..OpenFlags::default() };
    let (attr, first) = core.create(caller(), root, b"file", 0o644, true, flags(true, true, true))?;
    let origin = WriteOrigin::default();
    for offset in (0..FILE_BYTES).step_by(1 << 20) {
        core.write(caller(), first.handle, offset as u64, &vec![7; 1 << 20], origin)?;
    }
    let read_only = core.open(caller(), attr.ino, flags(true, false, true))?;
    Ok((attr.ino, vec![first.handle, read_only.handle]))
}
