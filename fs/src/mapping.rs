//! The filesystem as an exporter of the mapping engine, and the engine as the
//! keeper of coherence for the filesystem.

use std::sync::{Arc, Weak};

use peerfs_abi::{Reason, Trigger, TriggerSet};
use peerfs_blockdev::DeviceError;
use peerfs_p2p::{CacheProbe, CpuAccess, DirectPolicy, Engine, Exporter, MapRequest, ObjectId, Range, Survey};

use crate::coherence::{ClosedRange, Coherence};
use crate::core::Core;
use crate::cpu_cache::CpuCache;
use crate::types::Ino;

/// What can happen to a file of a writable volume. Where nothing can be written, cached readers share with importers.
const CHANGES: TriggerSet = TriggerSet::EMPTY
    .with(Trigger::Truncate)
    .with(Trigger::Punch)
    .with(Trigger::Unlink)
    .with(Trigger::CpuAccess)
    .with(Trigger::PolicyChange)
    .with(Trigger::Reflink);

/// Files, as the engine asks about them.
pub struct FileExporter {
    core: Arc<Core>,
    cache: Arc<dyn CpuCache>,
    policy: DirectPolicy,
    read_only: bool,
}

impl FileExporter {
    /// Exports the files of `core`; `policy` is the mount's.
    pub fn new(core: Arc<Core>, cache: Arc<dyn CpuCache>, policy: DirectPolicy, read_only: bool) -> Self {
        FileExporter { core, cache, policy, read_only }
    }

    /// The mount's `never` cannot be overridden by a file's owner.
    fn policy(&self, ino: Ino) -> DirectPolicy {
        match self.policy {
            DirectPolicy::Never => DirectPolicy::Never,
            mount => self.core.direct_policy(ino).unwrap_or(mount),
        }
    }

    /// Ranges with cached pages. They matter only where the policy respects the cache; without a
    /// way to look, all of it counts as cached.
    fn cached(&self, request: &MapRequest, range: Range, policy: DirectPolicy) -> Vec<Range> {
        if policy != DirectPolicy::RespectCache || range.is_empty() {
            return Vec::new();
        }
        let cached = request.cache_probe.map(|probe| self.cache.cached_ranges(request.object.0, range, probe));
        cached.and_then(Result::ok).unwrap_or_else(|| vec![range])
    }

    fn look(&self, request: &MapRequest, range: Range, cached: impl FnOnce(Range, DirectPolicy) -> Vec<Range>) -> Option<Survey> {
        let ino = request.object.0;
        let extents = self.core.survey_extents(ino, range)?;
        let policy = self.policy(ino);
        let read_only = self.read_only || self.core.read_only();
        let within = range.intersect(Range { start: 0, end: extents.size });
        Some(Survey {
            regular: extents.regular,
            size: extents.size,
            read_only,
            policy,
            extents: extents.extents,
            cached: cached(within, policy),
            closed: Vec::new(),
            pins: self.core.cached_handles(ino),
            triggers: if read_only { TriggerSet::EMPTY } else { CHANGES },
        })
    }
}

impl Exporter for FileExporter {
    fn survey(&self, request: &MapRequest, range: Range) -> Option<Survey> {
        self.look(request, range, |within, policy| self.cached(request, within, policy))
    }

    // To look at the cache is to open the file, which the kernel lets wait for direct writes under way.
    fn survey_quiesced(&self, request: &MapRequest, range: Range) -> Option<Survey> {
        self.look(request, range, |_, _| Vec::new())
    }

    fn quiesce(&self, object: ObjectId, range: Range, probe: Option<CacheProbe>) -> Result<(), Reason> {
        let lost = self.core.lost_write_backs(object.0);
        let dropping = self.core.dropping_pages(object.0);
        let dropped = self.cache.invalidate(object.0, range);
        drop(dropping);
        dropped.map_err(|error| {
            tracing::debug!(ino = object.0, %error, "cached pages could not be dropped");
            Reason::PageCacheDirty
        })?;
        // The kernel drops a page whose write-back failed and tells only fsync(2) of it; the importer is told here.
        if self.core.lost_write_backs(object.0) != lost {
            return Err(Reason::PageCacheDirty);
        }
        let Some(probe) = probe else { return Ok(()) };
        match self.cache.state(object.0, range, probe) {
            Ok(state) if state.cached == 0 => Ok(()),
            Ok(state) if state.dirty > 0 => Err(Reason::PageCacheDirty),
            Ok(_) => Err(Reason::Busy),
            // No right to look into the client: the kernel's word has to do.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES | libc::ENOSYS)) => Ok(()),
            Err(error) => {
                tracing::debug!(ino = object.0, %error, "the client's descriptor does not name the file");
                Err(Reason::PageCached)
            }
        }
    }

    fn drops_pages(&self, object: ObjectId) -> bool {
        self.policy(object.0) == DirectPolicy::Prefer
    }

    fn cpu_idle(&self, object: ObjectId) -> bool {
        self.drops_pages(object) && self.core.cached_handles(object.0).cached_handles == 0
    }

    fn write_granted(&self, object: ObjectId) -> Result<(), Reason> {
        self.core.touch_written(object.0).map_err(|error| {
            tracing::warn!(ino = object.0, %error, "a file cannot be mapped for writing: its times were not updated");
            Reason::ReadOnly
        })?;
        self.cache.invalidate_attributes(object.0);
        Ok(())
    }

    fn release_blocks(&self, object: ObjectId, device_ranges: &[Range]) {
        if let Err(error) = self.core.release_blocks(object.0, device_ranges) {
            tracing::warn!(ino = object.0, %error, "blocks of a pin that ended stay in use until the next mount");
        }
    }
}

/// The engine, as file operations see it.
pub struct EngineCoherence {
    engine: Weak<Engine>,
}

impl EngineCoherence {
    /// Weak, because the engine's exporter holds the operations.
    pub fn new(engine: &Arc<Engine>) -> Self {
        EngineCoherence { engine: Arc::downgrade(engine) }
    }
}

impl Coherence for EngineCoherence {
    fn close_range(&self, ino: Ino, range: Range, trigger: Trigger) -> ClosedRange {
        match self.engine.upgrade() {
            Some(engine) => Box::new(engine.close_range(ObjectId(ino), range, trigger)),
            None => Box::new(()),
        }
    }

    fn cached_read(&self, ino: Ino, range: Range, cpu_writers: u32) {
        if let Some(engine) = self.engine.upgrade() {
            engine.cpu_access(ObjectId(ino), range, CpuAccess::CachedRead { cpu_writers });
        }
    }

    fn cached_write(&self, ino: Ino, range: Range) {
        if let Some(engine) = self.engine.upgrade() {
            engine.cpu_access(ObjectId(ino), range, CpuAccess::CachedWrite);
        }
    }

    fn partial_write(&self, ino: Ino, range: Range) -> ClosedRange {
        match self.engine.upgrade() {
            Some(engine) => Box::new(engine.close_to_writes(ObjectId(ino), range)),
            None => Box::new(()),
        }
    }

    fn before_sharing(&self, ino: Ino, range: Range) -> Option<ClosedRange> {
        match self.engine.upgrade() {
            Some(engine) => Some(Box::new(engine.close_before_sharing(ObjectId(ino), range)?)),
            None => Some(Box::new(())),
        }
    }

    fn writable_cached_open(&self, ino: Ino) {
        if let Some(engine) = self.engine.upgrade() {
            engine.writable_cached_open(ObjectId(ino));
        }
    }

    fn must_open_direct(&self, ino: Ino, write: bool) -> bool {
        self.engine.upgrade().is_some_and(|engine| engine.must_open_direct(ObjectId(ino), write))
    }

    fn pinned_blocks(&self, ino: Ino, freed: &[Range]) -> Vec<Range> {
        self.engine.upgrade().map_or_else(Vec::new, |engine| engine.orphan_pinned(ObjectId(ino), freed))
    }

    fn flush(&self, ino: Ino) -> Result<(), DeviceError> {
        self.engine.upgrade().map_or(Ok(()), |engine| engine.flush_object(ObjectId(ino)))
    }

    fn size_changed(&self, ino: Ino, old_size: u64, new_size: u64) {
        if let Some(engine) = self.engine.upgrade() {
            engine.size_changed(ObjectId(ino), old_size, new_size);
        }
    }

    fn is_mapped(&self, ino: Option<Ino>) -> bool {
        self.engine.upgrade().is_some_and(|engine| engine.is_mapped(ino.map(ObjectId)))
    }
}
