//! The mount's totals: what it refused, what moved which way and why, and how long revocations took.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use peerfs_abi::{MapFlags, Reason, Trigger};

use crate::backend::Capability;
use crate::case::{Case, Setup};
use crate::evidence::Way::{Direct, Fallback};
use crate::scene::{PAGE, Scene};
use crate::witness::Witness;

/// Revocations of the case.
const REVOCATIONS: u64 = 3;

pub const CASES: &[Case] = &[Case::new(
    "answer-metrics",
    "the mount's totals agree: bytes by path and reason, refusals by reason, and a histogram of cuts, as JSON and as metrics",
    Setup::USUAL.alone(),
    totals,
)
.needing(&[Capability::Grants])];

/// The samples of `.peerfs/metrics` by name and labels.
struct Metrics(HashMap<String, f64>);

impl Metrics {
    fn read(scene: &Scene<'_>) -> Result<Metrics> {
        let text = std::fs::read_to_string(scene.path(".peerfs/metrics"))?;
        let sample = |line: &str| {
            let (name, value) = line.rsplit_once(' ').with_context(|| format!("`{line}` is no sample"))?;
            Ok((name.to_owned(), value.parse()?))
        };
        Ok(Metrics(text.lines().filter(|line| !line.starts_with('#')).map(sample).collect::<Result<_>>()?))
    }

    /// `None` when it is not there.
    fn value(&self, name: &str) -> Option<f64> {
        self.0.get(&format!("peerfs_{name}")).copied()
    }

    fn expect(&self, name: &str, value: u64) -> Result<()> {
        let found = self.value(name);
        ensure!(found == Some(value as f64), "peerfs_{name} is {found:?} instead of {value}");
        Ok(())
    }

    /// Upper edges and counts of a histogram of a trigger, smallest edge first.
    fn buckets(&self, name: &str, trigger: Trigger) -> Vec<(f64, f64)> {
        let start = format!("peerfs_{name}_bucket{{trigger=\"{trigger}\",le=\"");
        let edge = |name: &str| name.strip_prefix(&start)?.strip_suffix("\"}")?.parse::<f64>().ok();
        let mut buckets: Vec<(f64, f64)> = self.0.iter().filter_map(|(name, count)| Some((edge(name)?, *count))).collect();
        buckets.sort_by(|one, other| one.0.total_cmp(&other.0));
        buckets
    }
}

fn totals(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", 2 * PAGE)?;
    scene.needs_window(&file)?;
    file.writer()?.set_len(4 * PAGE)?;
    let session = scene.session()?;
    let mapping = session.map(&file.handle, .., MapFlags::empty())?;
    scene.expect_map(&mapping, &[(0..2 * PAGE, Direct), (2 * PAGE..4 * PAGE, Fallback(Reason::Hole))])?;
    mapping.read_at(0, &mut vec![0; 4 * PAGE as usize])?;
    file.handle.revoke(..)?;
    mapping.read_at(0, &mut vec![0; PAGE as usize])?;
    mapping.report()?;
    drop(mapping);
    enforced(scene)?;

    let metrics = Metrics::read(scene)?;
    moved(scene, &metrics)?;
    refused(scene, &metrics)?;
    metrics.expect("revoked_grants_total{trigger=\"Administrator\"}", 1 + REVOCATIONS)?;
    metrics.expect("enforced_grants_total{trigger=\"Administrator\"}", REVOCATIONS)?;
    histogram(scene, &metrics)
}

/// Revocations that each take the whole deadline.
fn enforced(scene: &Scene<'_>) -> Result<()> {
    let file = scene.file("hung", PAGE)?;
    for _ in 0..REVOCATIONS {
        let witness = Witness::map(scene, &file, 0..PAGE, MapFlags::empty())?;
        ensure!(file.handle.revoke(..)?.enforced == 1, "the deadline was to pass");
        witness.expect_event(scene, Trigger::Administrator)?;
    }
    Ok(())
}

fn moved(scene: &Scene<'_>, metrics: &Metrics) -> Result<()> {
    let direct = scene.direct_path();
    let moved = &scene.mount.info()?["moved"];
    ensure!(moved[direct.name()] == 2 * PAGE, "the mount moved {moved}");
    ensure!(moved["fallback"] == serde_json::json!({ "revoked": PAGE, "Hole": 2 * PAGE }), "the mount moved {moved}");
    metrics.expect(&format!("moved_bytes_total{{path=\"{direct}\"}}"), 2 * PAGE)?;
    metrics.expect("moved_bytes_total{path=\"fallback\"}", 3 * PAGE)?;
    metrics.expect("fallback_bytes_total{reason=\"Hole\"}", 2 * PAGE)?;
    metrics.expect("fallback_bytes_total{reason=\"revoked\"}", PAGE)
}

/// The map of the hole, and whatever was busy for a moment.
fn refused(scene: &Scene<'_>, metrics: &Metrics) -> Result<()> {
    let refused = &scene.mount.info()?["refused"];
    ensure!(refused["Hole"] == 1, "the mount refused {refused}");
    for reason in Reason::ALL {
        let found = metrics.value(&format!("refused_total{{reason=\"{reason}\"}}"));
        ensure!(found == refused[reason.name()].as_f64(), "{found:?} refusals by {reason}, and {refused}");
    }
    Ok(())
}

fn histogram(scene: &Scene<'_>, metrics: &Metrics) -> Result<()> {
    const NAME: &str = "revocation_cut_seconds";
    let buckets = metrics.buckets(NAME, Trigger::Administrator);
    ensure!(buckets.windows(2).all(|pair| pair[0].1 <= pair[1].1), "it is not cumulative: {buckets:?}");
    let (edge, all) = buckets.last().copied().context("the histogram is not there")?;
    let count = metrics.value(&format!("{NAME}_count{{trigger=\"Administrator\"}}"));
    ensure!(edge.is_infinite() && count == Some(all), "{count:?} in all, and {all} below {edge}");
    ensure!(all == (1 + REVOCATIONS) as f64, "{all} revocations instead of {}", 1 + REVOCATIONS);
    // Whoever took the whole deadline is in no bucket below it.
    let early = buckets.iter().rfind(|(edge, _)| *edge < 0.1).map(|(_, count)| *count);
    ensure!(early.is_some_and(|early| early <= 1.0), "{early:?} revocations before the deadline: {buckets:?}");
    let sum = metrics.value(&format!("{NAME}_sum{{trigger=\"Administrator\"}}")).context("the histogram has no sum")?;
    let deadline = scene.mount.info()?["deadline_ms"].as_f64().context("info.json has the deadline")? / 1e3;
    ensure!(sum >= REVOCATIONS as f64 * deadline, "{sum} seconds in all");
    Ok(())
}
