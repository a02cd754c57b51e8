//! The text format of Prometheus (version 0.0.4).

use std::fmt::{Display, Write};

use peerfs_p2p::Distribution;

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

/// The text under way. Writing to a string cannot fail.
#[derive(Default)]
pub(super) struct Page(String);

impl Page {
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0.into_bytes()
    }

    /// A metric without labels that may go up and down.
    pub(super) fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.head(name, "gauge", help);
        self.sample(name, "", value);
    }

    /// A gauge with one label: its value and the metric's, for each.
    pub(super) fn gauges<L: Display, V: Display>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = (L, V)>,
    ) {
        self.labelled(name, "gauge", help, label, values);
    }

    /// A counter with one label.
    pub(super) fn counters<L: Display>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = (L, u64)>,
    ) {
        self.labelled(name, "counter", help, label, values);
    }

    /// A histogram of durations for each trigger.
    pub(super) fn histograms<'a>(
        &mut self,
        name: &str,
        help: &str,
        distributions: impl IntoIterator<Item = (&'static str, &'a Distribution)>,
    ) {
        self.head(name, "histogram", help);
        for (trigger, distribution) in distributions {
            self.histogram(name, trigger, distribution);
        }
    }

    fn labelled<L: Display, V: Display>(
        &mut self,
        name: &str,
        kind: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = (L, V)>,
    ) {
        self.head(name, kind, help);
        for (of, value) in values {
            self.sample(name, &format!("{{{label}=\"{of}\"}}"), value);
        }
    }

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP peerfs_{name} {help}\n# TYPE peerfs_{name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &str, value: impl Display) {
        let _ = writeln!(self.0, "peerfs_{name}{labels} {value}");
    }

    fn histogram(&mut self, name: &str, trigger: &str, distribution: &Distribution) {
        let total = distribution.cumulative.last().map_or(0, |(_, count)| *count);
        for edge in EDGES_NS {
            let within = distribution.cumulative.iter().rfind(|(edge_ns, _)| *edge_ns <= edge);
            let count = within.map_or(0, |(_, count)| *count);
            self.sample(&format!("{name}_bucket"), &format!("{{trigger=\"{trigger}\",le=\"{}\"}}", seconds(edge)), count);
        }
        let trigger = format!("trigger=\"{trigger}\"");
        self.sample(&format!("{name}_bucket"), &format!("{{{trigger},le=\"+Inf\"}}"), total);
        self.sample(&format!("{name}_sum"), &format!("{{{trigger}}}"), seconds(distribution.sum_ns));
        self.sample(&format!("{name}_count"), &format!("{{{trigger}}}"), total);
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
