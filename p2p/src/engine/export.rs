//! What each exporter has for itself: its objects, the aperture of its device,
//! and what that device reported. Sessions, contexts, mappings, grants and the
//! ledger are shared, so one context maps objects of every exporter.

use std::sync::{Arc, OnceLock, Weak};

use peerfs_abi::{Reason, ReasonSet};
use peerfs_blockdev::{Aperture, ApertureInfo, BlockDevice, PathKind};

use super::Engine;
use super::device_state::DeviceState;
use super::order::{ReverseMap, UseOrder};
use crate::api::MapError;
use crate::exporter::Exporter;
use crate::topology::Topology;
use crate::types::{ExportId, Importer, ObjectId};

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
    topology: OnceLock<Topology>,
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

    pub(super) fn aperture_info(&self) -> Option<ApertureInfo> {
        let info = self.aperture()?.info();
        Some(match self.topology.get() {
            Some(topology) => topology.limit(info),
            None => info,
        })
    }

    /// What keeps this importer from the device, whatever is mapped. One on the bus needs a way that is known.
    pub(super) fn refusals(&self, importer: &Importer) -> ReasonSet {
        let topology = self.topology.get();
        let way = match (importer.pci_address, topology) {
            (None, _) => ReasonSet::EMPTY,
            (Some(_), None) => ReasonSet::EMPTY.with(Reason::NoPeerPath),
            (Some(address), Some(topology)) => topology.refusing_reasons(address, importer.dma_bits),
        };
        // What the description says of the aperture, and what the aperture says of itself.
        let grantable =
            topology.is_none_or(Topology::is_grantable) && self.aperture().is_none_or(|aperture| aperture.info().grantable);
        let handed_over = importer.in_client && !grantable;
        // What drives itself over the bus has no use for main memory under the name of a device.
        let elsewhere = self.aperture().is_some_and(|aperture| aperture.info().path != PathKind::DirectBar);
        let unreachable = importer.pci_address.is_some() && !importer.in_client && elsewhere;
        way.union(self.device.refusals()).with_if(handed_over, Reason::NoGrantObject).with_if(unreachable, Reason::NoPeerPath)
    }
}

impl Engine {
    /// Tells where the device of files is on the PCI bus. Until then no importer on a bus reaches it. A second topology
    /// is ignored.
    pub fn attach_topology(&self, topology: Topology) {
        if self.exports[ExportId::Files.index()].topology.set(topology).is_err() {
            tracing::warn!("a topology is attached already; the second one is ignored");
        }
    }

    /// The topology around the device of files, if it is known.
    pub fn topology(&self) -> Option<&Topology> {
        self.exports[ExportId::Files.index()].topology.get()
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
