//! The server's state as JSON: what `peerfs info` and `peerfs mappings` show.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use peerfs_blockdev::{ApertureKind, BLOCK_BYTES, IoCount};
use peerfs_p2p::ByReason;
use peerfs_p2p::topology::Scope;
use serde::Serialize;
use serde_json::{Value, json};

use super::Control;
use super::ioctl::attested;
use crate::error::{FsError, Result};
use crate::requests::RequestKind;
use crate::types::Timestamp;

/// Windows in the ledger at most.
const WINDOWS_LISTED: usize = 4096;

/// What is fixed for the life of a mount.
#[derive(Debug, Clone)]
pub struct MountFacts {
    /// Device as named at the mount.
    pub device: String,
    /// Where it is mounted.
    pub mountpoint: String,
    /// Label of the volume.
    pub label: String,
    /// UUID of the volume.
    pub uuid: String,
    /// User the server runs as.
    pub owner_uid: u32,
    /// When the server started.
    pub started: Timestamp,
    /// Revocation deadline, milliseconds.
    pub deadline_ms: u32,
    /// `prefer`, `respect-cache` or `never`.
    pub direct: String,
    /// No writes.
    pub read_only: bool,
    /// Where the metrics are served, if anywhere.
    pub metrics: Option<SocketAddr>,
}

impl Control {
    /// `info.json`.
    pub(super) fn info_json(&self) -> Result<Vec<u8>> {
        let (capacity_bytes, free_bytes) = self.space()?;
        let device = self.device.info();
        let totals = self.engine.totals();
        let aperture = self.aperture_info().map_or(Value::Null, |aperture| {
            json!({
                "name": aperture.name,
                "kind": match aperture.kind { ApertureKind::Identity => "identity", ApertureKind::Windowed => "windowed" },
                "path": attested(aperture.path).name(),
                "grantable": aperture.grantable,
                "capacity_bytes": aperture.capacity_bytes,
                "used_bytes": aperture.used_bytes,
                "windows": aperture.windows,
                "page_bytes": aperture.page_bytes,
            })
        });
        let facts = &self.facts;
        let pins = self.engine.pin_totals();
        render(&json!({
            "version": env!("CARGO_PKG_VERSION"),
            "server_pid": std::process::id(),
            "started_seconds": facts.started.seconds,
            "mountpoint": facts.mountpoint,
            "device": {
                "name": facts.device,
                "backend": device.backend,
                "size_bytes": device.size_bytes,
                "direct_io": device.direct_io,
            },
            "volume": {
                "label": facts.label,
                "uuid": facts.uuid,
                "capacity_bytes": capacity_bytes,
                "free_bytes": free_bytes,
                "metadata_bytes": self.core.volume().metadata_blocks() * BLOCK_BYTES,
                "quarantined_bytes": self.core.volume().space().quarantined * BLOCK_BYTES,
            },
            "read_only": facts.read_only,
            "direct": facts.direct,
            "deadline_ms": facts.deadline_ms,
            "grants": if self.transport() == peerfs_abi::ioctl::transport::PASSTHROUGH { "passthrough" } else { "socket" },
            "metrics": facts.metrics.map(|address| address.to_string()),
            "limits": self.limits.get().map_or(&[][..], Vec::as_slice),
            "aperture": aperture,
            "faults": self.faults.is_some(),
            "topology": self.engine.topology().map(|topology| json!({
                "source": topology.source(),
                "storage": topology.storage().map(|address| address.to_string()),
                "endpoints": topology.endpoint_count(),
            })),
            "device_memory": self.device_memory_summary(),
            "importers": self.importers_report(),
            "sessions": totals.sessions,
            "contexts": totals.contexts,
            "mappings": totals.mappings,
            "windows": totals.windows,
            "windows_held": totals.windows_held,
            "pins": pins.pins,
            "pinned_bytes": pins.used_bytes,
            "pin_quota_bytes": pins.quota_bytes,
            "pin_quota_user_bytes": pins.quota_user_bytes,
            "dmabuf_pins": peerfs_sys::has_udmabuf(),
            "revocations": totals.revocations,
            "refused": ByReason(&totals.refused),
            "moved": totals.moved,
            "requests": self.requests_report(),
            "storage": self.storage_report(),
            "device_events": self.storage.events().into_iter().collect::<BTreeMap<_, _>>(),
        }))
    }

    /// Requests of the kernel by operation; operations that were never asked for are left out.
    fn requests_report(&self) -> BTreeMap<&'static str, u64> {
        let counts = RequestKind::ALL.into_iter().map(|kind| (kind.name(), self.requests.get(kind)));
        counts.filter(|(_, count)| *count > 0).collect()
    }

    /// Requests to the storage by operation.
    fn storage_report(&self) -> BTreeMap<&'static str, Value> {
        let report = |count: IoCount| json!({ "requests": count.requests, "bytes": count.bytes, "errors": count.errors });
        self.storage.io().into_iter().map(|count| (count.kind.name(), report(count))).collect()
    }

    /// `topology.json`.
    pub(super) fn topology_json(&self) -> Result<Vec<u8>> {
        render(&json!(self.engine.topology().map(|topology| topology.report(Scope::Usual))))
    }

    /// `mappings.json`.
    pub(super) fn mappings_json(&self) -> Result<Vec<u8>> {
        let snapshot = self.engine.snapshot();
        let (windows, windows_left_out) = self.engine.window_records(WINDOWS_LISTED);
        render(&json!({
            "contexts": snapshot.contexts,
            "mappings": snapshot.mappings,
            "windows": windows,
            "windows_left_out": windows_left_out,
            "pins": self.engine.pins(),
            "mappings_left_out": snapshot.mappings_left_out,
            "refusals": snapshot.refusals,
            "revocations": snapshot.last_revocations,
        }))
    }
}

pub(super) fn render(value: &impl Serialize) -> Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|error| FsError::with_context(libc::EIO, error.to_string()))?;
    text.push(b'\n');
    Ok(text)
}
