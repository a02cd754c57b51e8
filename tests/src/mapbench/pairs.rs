//! Map and unmap pairs per second through the client library.

use std::time::Instant;

use anyhow::Result;
use peerfs_client::{File, ImporterSpec, MapFlags, Session};
use peerfs_conformance::kit::ScratchMount;

use super::{Plan, ensure_direct, make_file, mib};
use crate::report::{Report, median};

pub(super) fn measure(plan: &Plan) -> Result<Report> {
    let length = plan.large_bytes;
    let scratch = ScratchMount::new(&mib(2 * length + (256 << 20)), &["--cmb", &mib(length + (64 << 20))])?;
    let path = scratch.join("mapped");
    make_file(&path, length)?;
    let file = File::open(&path)?;
    let session = Session::open(scratch.path(), ImporterSpec::cpu())?;
    let mut report = Report::new("Map and unmap through the client library", &["range", "window", "pairs/s", "bytes mapped/s"]);
    let mut add = |range: &str, window: &str, bytes: u64, pairs: u64| -> Result<()> {
        let rates = (0..plan.runs).map(|_| rate(&session, &file, bytes, pairs)).collect::<Result<Vec<f64>>>()?;
        let rate = median(rates);
        report.row([range.into(), window.into(), format!("{rate:.1}"), format!("{:.0} MB", rate * bytes as f64 / 1e6)]);
        Ok(())
    };
    let large = mib(length);
    add("4 KiB", "made and ended by each pair", 4096, plan.small_pairs)?;
    add(&large, "made and ended by each pair", length, 1)?;
    let keeper = session.map(&file, .., MapFlags::empty())?;
    ensure_direct(&keeper)?;
    add("4 KiB", "held by another mapping", 4096, plan.small_pairs)?;
    add(&large, "held by another mapping", length, 1)?;
    report.note(format!("Medians of {} runs. The client's mmap(2) and munmap(2) of each window are part of a pair.", plan.runs));
    Ok(report)
}

fn rate(session: &Session, file: &File, bytes: u64, pairs: u64) -> Result<f64> {
    let start = Instant::now();
    for _ in 0..pairs {
        let mapping = session.map(file, ..bytes, MapFlags::empty())?;
        ensure_direct(&mapping)?;
        mapping.unmap()?;
    }
    Ok(pairs as f64 / start.elapsed().as_secs_f64())
}
