//! What each exporter has for itself: its objects, the aperture of its device,
//! and what that device reported. Sessions, contexts, mappings, grants and the
//! ledger are shared, so one context maps objects of every exporter.

use std::collections::HashSet;
use std::sync::{Arc, OnceLock, PoisonError, RwLock, Weak};

use peerfs_abi::{Reason, ReasonSet, Trigger};
use peerfs_blockdev::{Aperture, ApertureInfo, BlockDevice};

use super::Engine;
use super::device_state::DeviceState;
use super::object::{Chunk, ChunkState};
use super::order::{ReverseMap, UseOrder};
use super::revoke::Batch;
use crate::api::{MapError, RevokeReport};
use crate::exporter::Exporter;
use crate::sync::{Mutex, lock};
use crate::topology::Topology;
use crate::types::{ContextId, ExportId, Importer, ObjectId, Range};

/// One exporter and its device.
#[derive(Default)]
pub(super) struct Export {
    exporter: OnceLock<Weak<dyn Exporter>>,
    aperture: OnceLock<Arc<dyn Aperture>>,
    /// Windows of this aperture, least recently granted first.
    pub(super) order: UseOrder,
    /// Blocks of this device in windows.
    pub(super) reverse: ReverseMap,
    pub(super) device: DeviceState,
    /// Where this device is on the PCI bus, and who reaches it there.
    /// Held for a copy or an exchange only: what an exchange has to meet is found under the objects' locks.
    topology: RwLock<Option<Arc<Topology>>>,
    /// Held while a topology is read, so that an older reading never takes the place of a newer one.
    reading: Mutex<()>,
}

impl Export {
    /// Of a device with this aperture, if it has one.
    pub(super) fn of(aperture: Option<Arc<dyn Aperture>>) -> Export {
        let export = Export::default();
        if let Some(aperture) = aperture {
            export.aperture.get_or_init(|| aperture);
        }
        export
    }

    pub(super) fn aperture(&self) -> Option<&Arc<dyn Aperture>> {
        self.aperture.get()
    }

    fn topology(&self) -> Option<Arc<Topology>> {
        self.topology.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// `None`: nothing changes. Otherwise whether the aperture allows less than before.
    fn exchange_topology(&self, new: Topology) -> Option<bool> {
        let mut topology = self.topology.write().unwrap_or_else(PoisonError::into_inner);
        if topology.as_deref() == Some(&new) {
            return None;
        }
        let old = topology.replace(Arc::new(new));
        let info = self.aperture().map(|aperture| aperture.info());
        let allowed = |topology: Option<&Topology>| {
            let info = limited(info.clone()?, topology);
            Some((info.writable, info.atomic))
        };
        let (before, now) = (allowed(old.as_deref()), allowed(topology.as_deref()));
        Some(before.zip(now).is_some_and(|(before, now)| (before.0 && !now.0) || (before.1 && !now.1)))
    }

    pub(super) fn aperture_info(&self) -> Option<ApertureInfo> {
        let info = self.aperture()?.info();
        Some(limited(info, self.topology().as_deref()))
    }

    /// What keeps this importer from the device, whatever is mapped. One on the bus needs a way that is known.
    pub(super) fn refusals(&self, importer: &Importer) -> ReasonSet {
        let topology = self.topology();
        let way = match (importer.pci_address, &topology) {
            (None, _) => ReasonSet::EMPTY,
            (Some(_), None) => ReasonSet::EMPTY.with(Reason::NoPeerPath),
            (Some(address), Some(topology)) => topology.refusing_reasons(address, importer.dma_bits),
        };
        // What the description says of the aperture, and what the aperture says of itself.
        let grantable = topology.is_none_or(|topology| topology.is_grantable())
            && self.aperture().is_none_or(|aperture| aperture.info().grantable);
        let handed_over = importer.in_client && !grantable;
        // What drives itself over the bus has no use for main memory under the name of a device.
        let elsewhere = self.aperture().is_some_and(|aperture| aperture.info().bus.is_none());
        let unreachable = importer.pci_address.is_some() && !importer.in_client && elsewhere;
        way.union(self.device.refusals()).with_if(handed_over, Reason::NoGrantObject).with_if(unreachable, Reason::NoPeerPath)
    }
}

/// As the topology limits it.
fn limited(info: ApertureInfo, topology: Option<&Topology>) -> ApertureInfo {
    match topology {
        Some(topology) => topology.limit(info),
        None => info,
    }
}

impl Engine {
    /// Tells where the device of files is on the PCI bus, or that this has changed. Until the first time no importer on a
    /// bus reaches it. Mappings of importers that the new topology refuses are revoked (trigger `DeviceEvent`), which
    /// waits as every revocation; pins stay, as they do when the device is reset. One equal to the last changes nothing.
    pub fn attach_topology(&self, topology: Topology) -> RevokeReport {
        self.refresh_topology(|| topology)
    }

    /// As [`Engine::attach_topology`], with one that is read now: what was read last stays.
    pub fn refresh_topology(&self, read: impl FnOnce() -> Topology) -> RevokeReport {
        let export = &self.exports[ExportId::Files.index()];
        let turn = lock(&export.reading);
        let change = export.exchange_topology(read());
        drop(turn);
        match change {
            Some(narrowed) => self.revoke_refused(ExportId::Files, narrowed),
            None => RevokeReport::default(),
        }
    }

    /// The topology around the device of files, if it is known.
    pub fn topology(&self) -> Option<Arc<Topology>> {
        self.exports[ExportId::Files.index()].topology()
    }

    /// Ends mappings of contexts that are refused now; all, if the aperture allows less than it did. Maps under way start
    /// again, and one that joins a live window looks at the topology under its object's lock: so none is missed.
    fn revoke_refused(&self, id: ExportId, narrowed: bool) -> RevokeReport {
        let export = &self.exports[id.index()];
        let contexts = self.contexts.iter().filter(|entry| !export.refusals(&entry.value().importer).is_empty());
        let refused: HashSet<ContextId> = contexts.map(|entry| *entry.key()).collect();
        if refused.is_empty() && !narrowed {
            return RevokeReport::default();
        }
        let mut batch = Batch::new(&*self.clock);
        for object in self.objects_of(id) {
            let mut state = lock(&object.state);
            for number in state.overlapping(Range::ALL) {
                let concerned = |chunk: &Chunk| match &chunk.state {
                    ChunkState::Pending(_) | ChunkState::Revoking(_) => true,
                    ChunkState::Active(active) => narrowed || active.holders.any(|grant| refused.contains(&grant.context().id)),
                };
                if state.chunks.get(&number).is_some_and(concerned) {
                    self.seize(&object, &mut state, number, Trigger::DeviceEvent, &mut batch);
                }
            }
        }
        self.carry_out(batch, Trigger::DeviceEvent)
    }

    /// Names the exporter of files; a second one is ignored. Until then, and after it is gone, every map of a file
    /// answers `NoObject`.
    pub fn attach_exporter(&self, exporter: Weak<dyn Exporter>) {
        if self.exports[ExportId::Files.index()].exporter.set(exporter).is_err() {
            tracing::warn!("an exporter of files is attached already; the second one is ignored");
        }
    }

    /// Adds memory of a device beside the files: its exporter, its aperture, and the device whose events end mappings
    /// of it. To be called once; a second one is ignored.
    ///
    /// # Errors
    /// The thread for the device's events could not be started.
    pub fn attach_device_memory(
        self: &Arc<Self>,
        exporter: Weak<dyn Exporter>,
        aperture: Option<Arc<dyn Aperture>>,
        device: &dyn BlockDevice,
    ) -> std::io::Result<()> {
        let export = &self.exports[ExportId::DeviceMemory.index()];
        if export.exporter.set(exporter).is_err() {
            tracing::warn!("an exporter of device memory is attached already; the second one is ignored");
            return Ok(());
        }
        if let Some(aperture) = aperture {
            export.aperture.get_or_init(|| aperture);
        }
        self.subscribe_export(ExportId::DeviceMemory, device)
    }

    /// Everything that belongs to the exporter of an object.
    pub(super) fn export(&self, object: ObjectId) -> &Export {
        &self.exports[object.export().index()]
    }

    pub(super) fn exporter(&self, object: ObjectId) -> Result<Arc<dyn Exporter>, MapError> {
        self.export(object).exporter.get().and_then(Weak::upgrade).ok_or(MapError::NoObject { object })
    }

    /// Live windows of all exporters.
    pub(super) fn windows(&self) -> u64 {
        self.exports.iter().map(|export| export.order.len()).sum()
    }
}
