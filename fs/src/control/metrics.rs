//! The server's state as metrics, in the text format of Prometheus (version 0.0.4): the file `.peerfs/metrics`.
//!
//! Names are `peerfs_` and what is counted, in base units (bytes, seconds). Labels are the names of the enumerations:
//! `reason`, `trigger`, `path`. Counters start with the mount.

use std::fmt::Write;

use peerfs_abi::{Path, REASON_SLOTS, slot_name};
use peerfs_p2p::Distribution;

use super::Control;
use crate::error::Result;

/// Upper edges of the histograms, nanoseconds: such as the ledger counts with, finer around the usual deadline.
const EDGES_NS: [u64; 14] = [
    1 << 14,
    1 << 16,
    1 << 18,
    1 << 20,
    1 << 22,
    1 << 24,
    1 << 26,
    6 << 24,
    7 << 24,
    1 << 27,
    1 << 28,
    1 << 30,
    1 << 32,
    1 << 34,
];

impl Control {
    /// `metrics`.
    pub(super) fn metrics_text(&self) -> Result<Vec<u8>> {
        let (capacity_bytes, free_bytes) = self.space()?;
        let totals = self.engine.totals();
        let pins = self.engine.pin_totals();
        let mut page = Page::default();
        page.gauge("volume_capacity_bytes", "Capacity of the volume.", capacity_bytes);
        page.gauge("volume_free_bytes", "Free space of the volume.", free_bytes);
        if let Some(aperture) = self.aperture_info() {
            page.gauge("aperture_capacity_bytes", "Size of the aperture.", aperture.capacity_bytes);
            page.gauge("aperture_used_bytes", "Aperture space in use.", aperture.used_bytes);
        }
        page.gauge("sessions", "Open client sessions.", totals.sessions);
        page.gauge("contexts", "Registered importers.", totals.contexts);
        page.gauge("mappings", "Mappings that were made and not ended.", totals.mappings);
        page.gauge("windows", "Live windows.", totals.windows);
        page.gauge("windows_held", "Windows that were cut and not written back yet.", totals.windows_held);
        page.gauge("pins", "Live pins.", pins.pins);
        page.gauge("pinned_bytes", "Aperture space of pins.", pins.used_bytes);
        page.head("revocation_deadline_seconds", "gauge", "Time that importers have to acknowledge.");
        let _ = writeln!(page.0, "peerfs_revocation_deadline_seconds {}", f64::from(self.deadline_ms()) / 1e3);
        page.moved(&totals.moved);
        page.by_reason("refused_total", "Stretches that a map answered by fallback, by reason.", &totals.refused);
        page.head("revoked_grants_total", "counter", "Grants that ended, by trigger.");
        for record in &totals.revocations {
            page.line("revoked_grants_total", &format!("trigger=\"{}\"", record.trigger), record.revoked);
        }
        page.head("enforced_grants_total", "counter", "Grants that were cut without an acknowledgement, by trigger.");
        for record in &totals.revocations {
            page.line("enforced_grants_total", &format!("trigger=\"{}\"", record.trigger), record.enforced);
        }
        let distributions = self.engine.revocation_distributions();
        page.head("revocation_cut_seconds", "histogram", "Time from a trigger to the cut.");
        for of_trigger in &distributions {
            page.histogram("revocation_cut_seconds", of_trigger.trigger, &of_trigger.cut);
        }
        page.head("revocation_write_back_seconds", "histogram", "Time that write-back took after the cut.");
        for of_trigger in &distributions {
            page.histogram("revocation_write_back_seconds", of_trigger.trigger, &of_trigger.write_back);
        }
        Ok(page.0.into_bytes())
    }
}

/// The text under way. Writing to a string cannot fail.
#[derive(Default)]
struct Page(String);

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP peerfs_{name} {help}\n# TYPE peerfs_{name} {kind}");
    }

    fn line(&mut self, name: &str, labels: &str, value: u64) {
        let _ = writeln!(self.0, "peerfs_{name}{{{labels}}} {value}");
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) {
        self.head(name, "gauge", help);
        let _ = writeln!(self.0, "peerfs_{name} {value}");
    }

    fn by_reason(&mut self, name: &str, help: &str, counts: &[u64; REASON_SLOTS]) {
        self.head(name, "counter", help);
        for (slot, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            self.line(name, &format!("reason=\"{}\"", slot_name(slot)), *count);
        }
    }

    fn moved(&mut self, moved: &peerfs_p2p::Moved) {
        let name = "moved_bytes_total";
        self.head(name, "counter", "Bytes that importers reported to have moved, by path.");
        for (path, bytes) in [
            (Path::DirectWindow, moved.direct_window),
            (Path::DirectBar, moved.direct_bar),
            (Path::Fallback, moved.fallback_total()),
        ] {
            self.line(name, &format!("path=\"{path}\""), bytes);
        }
        self.by_reason("fallback_bytes_total", "Bytes moved by fallback, by reason.", &moved.fallback);
    }

    fn histogram(&mut self, name: &str, trigger: &str, distribution: &Distribution) {
        let total = distribution.cumulative.last().map_or(0, |(_, count)| *count);
        for edge in EDGES_NS {
            let within = distribution.cumulative.iter().rfind(|(edge_ns, _)| *edge_ns <= edge);
            let le = seconds(edge);
            let count = within.map_or(0, |(_, count)| *count);
            self.line(&format!("{name}_bucket"), &format!("trigger=\"{trigger}\",le=\"{le}\""), count);
        }
        self.line(&format!("{name}_bucket"), &format!("trigger=\"{trigger}\",le=\"+Inf\""), total);
        let _ = writeln!(self.0, "peerfs_{name}_sum{{trigger=\"{trigger}\"}} {}", seconds(distribution.sum_ns));
        self.line(&format!("{name}_count"), &format!("trigger=\"{trigger}\""), total);
    }
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_is_cumulative_and_ends_with_all() {
        let mut page = Page::default();
        let distribution =
            Distribution { cumulative: vec![(9_000, 2), (40_000_000, 5), (90_000_000_000, 6)], sum_ns: 91_000_000_000 };
        page.histogram("x", "Truncate", &distribution);
        let has = |line: &str| assert!(page.0.lines().any(|found| found == line), "{line} is missing in\n{}", page.0);
        has(r#"peerfs_x_bucket{trigger="Truncate",le="0.000016384"} 2"#);
        has(r#"peerfs_x_bucket{trigger="Truncate",le="0.016777216"} 2"#);
        has(r#"peerfs_x_bucket{trigger="Truncate",le="0.067108864"} 5"#);
        has(r#"peerfs_x_bucket{trigger="Truncate",le="17.179869184"} 5"#);
        has(r#"peerfs_x_bucket{trigger="Truncate",le="+Inf"} 6"#);
        has(r#"peerfs_x_sum{trigger="Truncate"} 91"#);
        has(r#"peerfs_x_count{trigger="Truncate"} 6"#);
    }
}
