//! How long a revocation takes until the cut, by the number of live mappings.

use std::time::Duration;

use anyhow::{Result, ensure};
use peerfs_client::{File, ImporterSpec, MapFlags, Session, SessionOptions};
use peerfs_conformance::kit::ScratchMount;

use super::holder::Crowd;
use super::{Plan, ensure_direct, make_file, mib};
use crate::report::{Report, milliseconds, percentile};

/// Blocks of the file: more mappings than these share blocks.
const FILE_BYTES_MAX: u64 = 256 << 20;

pub(super) fn measure(plan: &Plan) -> Result<Report> {
    let title = "Revocation latency, milliseconds from the request to the cut (deadline 100 ms)";
    let columns = ["live mappings", "windows", "importers", "revocations", "p50", "p99", "max", "cut unacknowledged"];
    let mut report = Report::new(title, &columns);
    for (mappings, repeats) in &plan.latency {
        for hung in [false, true] {
            one(plan, *mappings, *repeats, hung, &mut report)?;
        }
    }
    report.note(
        "Each live mapping is one of 4 KiB by itself, mapped into a client process. The time is the server's own, from \
         the moment it seizes the windows until the last one is cut; write-back comes after it."
            .into(),
    );
    Ok(report)
}

fn one(plan: &Plan, mappings: u64, repeats: usize, hung: bool, report: &mut Report) -> Result<()> {
    let length = (mappings * 4096).next_multiple_of(2 << 20).min(FILE_BYTES_MAX);
    let scratch = ScratchMount::new(&mib(2 * length + (256 << 20)), &["--cmb", &mib(length + (16 << 20))])?;
    let path = scratch.join("held");
    make_file(&path, length)?;
    let file = File::open(&path)?;
    let mut crowd = Crowd::start(&scratch, &plan.program, &path, mappings, hung)?;
    let (mut latencies, mut revoked, mut enforced) = (Vec::new(), 0, 0);
    for _ in 0..repeats {
        let first = fill(&scratch, &file, hung)?;
        crowd.map()?;
        let done = file.revoke(..)?;
        ensure!(done.grants >= mappings, "{} of {mappings} mappings were revoked", done.grants);
        eprintln!("{mappings} mappings, hung: {hung}: cut after {:?}, {} unacknowledged", done.latency, done.enforced);
        latencies.push(done.latency);
        (revoked, enforced) = (revoked + done.grants, enforced + done.enforced);
        drop(first);
    }
    report.row([
        mappings.to_string(),
        (length >> 21).to_string(),
        if hung { "hung" } else { "cooperative" }.into(),
        repeats.to_string(),
        milliseconds(percentile(&mut latencies, 50)),
        milliseconds(percentile(&mut latencies, 99)),
        milliseconds(latencies.iter().max().copied().unwrap_or(Duration::ZERO)),
        format!("{enforced} of {revoked}"),
    ]);
    Ok(())
}

/// Maps the whole file once, so that every window holds its whole chunk and small maps join it.
fn fill(scratch: &ScratchMount, file: &File, hung: bool) -> Result<(Session, peerfs_client::Mapping)> {
    let session = Session::open_with(scratch.path(), ImporterSpec::cpu(), SessionOptions { acknowledge: !hung })?;
    let mapping = session.map(file, .., MapFlags::empty())?;
    ensure_direct(&mapping)?;
    Ok((session, mapping))
}
