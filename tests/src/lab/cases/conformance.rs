//! The conformance suite on the apertures of real controllers: bare, where only the importer in the server reaches them, and
//! behind windows of main memory, which clients are given.
//!
//! An emulated machine takes seconds for each mount, of which the whole suite needs dozens, so it is for `--full`. Otherwise
//! what two mounts can show runs on the bare apertures, and some of the rules that need windows on persistent memory.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::lab::guest::{A, B, Guest};

/// For one run of the suite.
const PATIENCE: Duration = Duration::from_secs(110);
/// The same in full.
const FULL_PATIENCE: Duration = Duration::from_secs(1500);
/// On the bare aperture.
const BARE: &[&str] = &[
    "server-reads-directly",
    "server-reasons",
    "server-policy",
    "server-sees-writes",
    "server-after-changes",
    "server-truncate",
    "server-punch",
    "server-buffered-write",
    "server-administrator",
    "reason-hole",
    "answer-partial",
    "answer-triggers",
    "answer-direct-at-once",
    "trigger-truncate",
];
/// Behind windows.
const WINDOWED: &[&str] = &[
    "answer-direct-at-once",
    "answer-partial",
    "server-reads-directly",
    "effects-beyond-eof",
    "silent-mmap-stores",
    "revoke-last-store",
    "trust-tail-reads-zeros",
];

pub fn pmr(guest: &mut Guest<'_>) -> Result<()> {
    guest.bind(A)?;
    let device = A.part("pmr");
    bare(guest, &device)?;
    behind_windows(guest, &device)
}

pub fn ns1(guest: &mut Guest<'_>) -> Result<()> {
    guest.kernel_disk(B)?;
    let device = B.part("ns1");
    guest.peerfs(&["mkfs", "--force", &device])?;
    let refused = guest.refused("peerfs", &["conformance", "--backend", &device])?;
    ensure!(refused.contains("--force"), "a volume on the device: {refused}");
    bare(guest, &device)?;
    if guest.full() {
        behind_windows(guest, &device)?;
    }
    ensure!(B.driver().as_deref() == Some("nvme"), "{:?} has the controller instead of nvme", B.driver());
    Ok(())
}

fn bare(guest: &Guest<'_>, device: &str) -> Result<()> {
    suite(guest, &[device], BARE, "direct-bar").with_context(|| device.to_owned())
}

fn behind_windows(guest: &Guest<'_>, device: &str) -> Result<()> {
    suite(guest, &[device, "--cmb", "32M"], WINDOWED, "direct-window").with_context(|| format!("{device} behind windows"))
}

/// Runs the suite; `device` is what follows `--backend`. No case may fail, and the direct share may not be zero.
fn suite(guest: &Guest<'_>, device: &[&str], short: &[&str], direct: &str) -> Result<()> {
    let mut arguments = vec!["conformance", "--force", "--json", "--backend"];
    arguments.extend(device);
    if !guest.full() {
        short.iter().for_each(|case| arguments.extend(["--case", case]));
    }
    let report = guest.peerfs_json(&arguments, if guest.full() { FULL_PATIENCE } else { PATIENCE })?;
    let cases = report["cases"].as_array().context("the report has no cases")?;
    let went = |case: &&Value| case["asserted"].as_array().is_some_and(|facts| facts.iter().any(|fact| *fact == direct));
    let passed = || cases.iter().filter(|case| case["result"] == "passed");
    let share = passed().filter(went).count();
    eprintln!(
        "conformance {}: {} passed, {} failed, {} skipped; {direct} in {share}",
        device.join(" "),
        report["passed"],
        report["failed"],
        report["skipped"]
    );
    let failed: Vec<String> =
        cases.iter().filter(|case| case["result"] == "failed").map(|case| format!("{}: {}", case["case"], case["why"])).collect();
    ensure!(failed.is_empty(), "{} of {} cases failed: {}", failed.len(), cases.len(), failed.join("; "));
    ensure!(share > 0, "no case went {direct}");
    Ok(())
}
