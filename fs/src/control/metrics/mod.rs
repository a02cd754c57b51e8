//! The server's state as metrics, in the text format of Prometheus: the file `.peerfs/metrics`, and what the endpoint
//! serves (`-o metrics=`).
//!
//! Names are `peerfs_` and what is counted, in base units (bytes, seconds). Labels are the names of enumerations, and
//! never of files, users or processes, because whoever reaches the endpoint may read them. Counters start with the mount.
//! `docs/metrics.md` has them all.

mod endpoint;
mod page;

use peerfs_abi::{Path, REASON_SLOTS, Trigger, slot_name};
use peerfs_blockdev::BLOCK_BYTES;
use peerfs_p2p::{Moved, Totals};

use self::page::Page;
use super::Control;
use crate::error::Result;
use crate::requests::RequestKind;

impl Control {
    /// `metrics`.
    pub(super) fn metrics_text(&self) -> Result<Vec<u8>> {
        let totals = self.engine.totals();
        let mut page = Page::default();
        page.gauges("build_info", "Version of the server; always 1.", "version", [(env!("CARGO_PKG_VERSION"), 1)]);
        page.gauge("start_time_seconds", "When the server started, since the epoch.", self.facts.started.seconds);
        self.space_metrics(&mut page)?;
        self.use_metrics(&mut page, &totals);
        moved(&mut page, &totals.moved);
        let refused = by_reason(&totals.refused);
        page.counters("refused_total", "Stretches that a map answered by fallback, by reason.", "reason", refused);
        self.revocation_metrics(&mut page, &totals);
        self.device_memory_metrics(&mut page);
        self.traffic_metrics(&mut page);
        Ok(page.into_bytes())
    }

    fn space_metrics(&self, page: &mut Page) -> Result<()> {
        let (capacity_bytes, free_bytes) = self.space()?;
        let quarantined_bytes = self.core.volume().space().quarantined * BLOCK_BYTES;
        let aperture = self.aperture_info();
        let (aperture_bytes, used_bytes) = aperture.map_or((0, 0), |info| (info.capacity_bytes, info.used_bytes));
        page.gauge("volume_capacity_bytes", "Capacity of the volume.", capacity_bytes);
        page.gauge("volume_free_bytes", "Free space of the volume.", free_bytes);
        page.gauge("volume_quarantined_bytes", "Blocks that pins reach and no file has any more.", quarantined_bytes);
        page.gauge("aperture_capacity_bytes", "Size of the aperture; 0 without one.", aperture_bytes);
        page.gauge("aperture_used_bytes", "Aperture space in use.", used_bytes);
        Ok(())
    }

    fn use_metrics(&self, page: &mut Page, totals: &Totals) {
        let pins = self.engine.pin_totals();
        page.gauge("sessions", "Open client sessions.", totals.sessions);
        page.gauge("contexts", "Registered importers.", totals.contexts);
        page.gauge("mappings", "Mappings that were made and not ended.", totals.mappings);
        page.gauge("windows", "Live windows.", totals.windows);
        page.gauge("windows_held", "Windows that were cut and not written back yet.", totals.windows_held);
        page.gauge("pins", "Live pins.", pins.pins);
        page.gauge("pinned_bytes", "Aperture space of pins.", pins.used_bytes);
        page.gauge("pin_quota_bytes", "Aperture space that pins of the mount may take.", pins.quota_bytes);
        let in_flight = self.importers.iter().map(|importer| (importer.name(), importer.in_flight()));
        page.gauges(
            "importer_transfers_in_flight",
            "Transfers under way of importers that the server drives.",
            "importer",
            in_flight,
        );
    }

    /// What clients gave back is no revocation.
    fn revocation_metrics(&self, page: &mut Page, totals: &Totals) {
        let deadline_seconds = f64::from(self.deadline_ms()) / 1e3;
        let mut distributions = self.engine.revocation_distributions();
        distributions.retain(|of| is_revocation(of.trigger));
        let by_trigger = |count: fn(&peerfs_p2p::TriggerRecord) -> u64| {
            let records = totals.revocations.iter().filter(|record| is_revocation(record.trigger));
            records.map(move |record| (record.trigger, count(record)))
        };
        page.gauge("revocation_deadline_seconds", "Time that importers have to acknowledge.", deadline_seconds);
        let revoked = by_trigger(|record| record.revoked);
        page.counters("revoked_grants_total", "Grants that ended, by trigger.", "trigger", revoked);
        page.counters(
            "enforced_grants_total",
            "Grants that were cut without an acknowledgement, by trigger.",
            "trigger",
            by_trigger(|record| record.enforced),
        );
        let cuts = distributions.iter().map(|of| (of.trigger, &of.cut));
        page.histograms("revocation_cut_seconds", "Time from a trigger to the cut.", cuts);
        let write_backs = distributions.iter().map(|of| (of.trigger, &of.write_back));
        page.histograms("revocation_write_back_seconds", "Time that write-back took after the cut.", write_backs);
    }

    fn device_memory_metrics(&self, page: &mut Page) {
        let record = self.pool.as_ref().map(|pool| pool.record()).unwrap_or_default();
        page.gauge("device_memory_capacity_bytes", "Size of the device memory; 0 without any.", record.device_bytes);
        page.gauge("device_memory_free_bytes", "Device memory that is free.", record.free_bytes);
        page.gauge("device_memory_main_used_bytes", "Main memory that device memory has moved to.", record.main_bytes_used);
        page.gauge("device_memory_allocations", "Allocations of device memory.", record.allocations.len());
        let moves = [("out", record.moved_out), ("in", record.moved_in)];
        page.counters("device_memory_moves_total", "Allocations moved to main memory and back.", "direction", moves);
    }

    fn traffic_metrics(&self, page: &mut Page) {
        let requests = RequestKind::ALL.map(|kind| (kind.name(), self.requests.get(kind)));
        page.counters("requests_total", "Requests of the kernel, by operation.", "operation", requests);
        let io = self.storage.io();
        let each = |count: fn(&peerfs_blockdev::IoCount) -> u64| io.iter().map(move |of| (of.kind.name(), count(of)));
        let name = "storage_requests_total";
        page.counters(name, "Requests to the storage device, by operation.", "operation", each(|of| of.requests));
        page.counters("storage_bytes_total", "Bytes of these requests.", "operation", each(|of| of.bytes));
        page.counters("storage_errors_total", "Requests that the storage device failed.", "operation", each(|of| of.errors));
        let events = self.storage.events();
        page.counters("device_events_total", "What the storage device reported by itself, by event.", "event", events);
    }
}

fn is_revocation(trigger: &str) -> bool {
    trigger != Trigger::Unmap.name()
}

/// Counts that are not zero.
fn by_reason(counts: &[u64; REASON_SLOTS]) -> impl Iterator<Item = (&'static str, u64)> {
    counts.iter().enumerate().filter(|(_, count)| **count > 0).map(|(slot, count)| (slot_name(slot), *count))
}

fn moved(page: &mut Page, moved: &Moved) {
    let by_path = [
        (Path::DirectWindow, moved.direct_window),
        (Path::DirectBar, moved.direct_bar),
        (Path::Fallback, moved.fallback_total()),
    ];
    page.counters("moved_bytes_total", "Bytes that importers reported to have moved, by path.", "path", by_path);
    let fallback = by_reason(&moved.fallback);
    page.counters("fallback_bytes_total", "Bytes moved by fallback, by reason.", "reason", fallback);
}
