//! Taking mappings back: from an importer that obeys, and from one that does not.

use std::fs::OpenOptions;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use peerfs_client::{Error, File, ImporterSpec, MapFlags, Mapping, Session};
use serde_json::Value;

use super::contents::{ARCHIVE, Entry, SHRINK, SHRINK_HUNG, TINY, read_uncached};
use super::transfer::read_mapping;
use super::{DEADLINE_MS, Story};
use crate::output;

/// A revocation with an importer that obeys ends long before the deadline, one with a hung importer soon after it.
const SLACK: Duration = Duration::from_secs(2);

fn map(story: &Story, name: &str) -> Result<(Session, File, Mapping)> {
    let session = Session::open(story.sandbox.mountpoint(), ImporterSpec::cpu())?;
    let file = File::open(story.sandbox.path(name))?;
    let mapping = session.map(&file, .., MapFlags::empty())?;
    Ok((session, file, mapping))
}

/// Shortens a file and makes that durable; answers how long the truncation alone took.
fn shorten(path: &Path, length: u64) -> Result<Duration> {
    let file = OpenOptions::new().write(true).open(path)?;
    let start = Instant::now();
    file.set_len(length)?;
    let took = start.elapsed();
    file.sync_all()?;
    Ok(took)
}

/// The ledger's line for one cause.
fn ledger(story: &Story, trigger: &str) -> Result<Value> {
    let info = story.sandbox.info()?;
    let records = info["revocations"].as_array().map_or(&[][..], Vec::as_slice);
    records
        .iter()
        .find(|record| record["trigger"] == trigger)
        .cloned()
        .with_context(|| format!("no revocation by {trigger} was counted"))
}

fn record_shortened(story: &mut Story, name: &str) -> Result<()> {
    let content = read_uncached(&story.sandbox.path(name))?;
    story.contents.record(name, &content, true);
    Ok(())
}

/// The step: the importer hears of it, stops, and nobody sees bytes that are gone.
pub fn truncate_live(story: &mut Story) -> Result<String> {
    let (_session, _file, mapping) = map(story, SHRINK)?;
    let (before, _) = read_mapping(&mapping)?;
    let half = before.len() / 2;
    let (tell, heard) = mpsc::channel();
    mapping.on_revoke(move |_| {
        // The receiver lives until the step ends, and so does the mapping.
        let _ = tell.send(Instant::now());
    });
    let start = Instant::now();
    let took = shorten(&story.sandbox.path(SHRINK), half as u64)?;
    let first = heard.try_iter().min().context("the importer heard nothing of it")?;
    let record = ledger(story, "Truncate")?;
    ensure!(record["enforced"] == 0, "the importer obeyed, yet the cut had to be enforced");
    let at = half as u64;
    ensure!(
        matches!(mapping.access(at..at + 4096), Err(Error::Revoked { .. })),
        "the part that is gone can still be reached by address"
    );
    let (after, moved) = read_mapping(&mapping)?;
    ensure!(after == before[..half], "after the truncation the mapping shows other bytes than the file");
    story.totals.add(&mapping);
    record_shortened(story, SHRINK)?;
    Ok(format!(
        "{} to {}: importer heard after {} us, cut after {}, truncate(2) returned after {} us; then {} directly, {} by fallback",
        output::bytes(before.len() as u64),
        output::bytes(half as u64),
        first.saturating_duration_since(start).as_micros(),
        output::nanoseconds(record["cut"]["max_ns"].as_u64().unwrap_or(0)),
        took.as_micros(),
        output::bytes(moved.direct()),
        output::bytes(moved.fallback),
    ))
}

/// The step: after a revocation the same call serves the same bytes another way.
pub fn fall_back(story: &mut Story) -> Result<String> {
    let (_session, file, mapping) = map(story, SHRINK)?;
    let (before, direct) = read_mapping(&mapping)?;
    ensure!(direct.fallback == 0, "the shortened file does not map again");
    let revoked = file.revoke(..)?;
    ensure!(revoked.grants > 0 && revoked.enforced == 0, "{} grants revoked, {} enforced", revoked.grants, revoked.enforced);
    let (after, moved) = read_mapping(&mapping)?;
    ensure!(moved.direct() == 0, "{} still went directly", output::bytes(moved.direct()));
    ensure!(after == before, "fallback shows other bytes than the mapping did");
    story.totals.add(&mapping);
    Ok(format!(
        "{} revoked in {} us; {} read again by fallback, equal",
        output::count(revoked.grants, "grant"),
        revoked.latency.as_micros(),
        output::bytes(moved.fallback)
    ))
}

/// The step: an importer that does not answer loses the memory at the deadline, and delays nobody beyond it.
pub fn truncate_hung(story: &mut Story) -> Result<String> {
    let path = story.sandbox.path(SHRINK_HUNG);
    let half = story.contents.entry(SHRINK_HUNG)?.length / 2;
    let helper = story.sandbox.start_hung(&path)?;
    let bystander = story.contents.entry(TINY)?.clone();
    let (took, slowest) = while_reading(story, &bystander, || shorten(&path, half))?;
    let deadline = Duration::from_millis(DEADLINE_MS);
    ensure!(took < deadline + SLACK, "truncate(2) took {} ms", took.as_millis());
    helper.ended_by_sigbus()?;
    let record = ledger(story, "Truncate")?;
    ensure!(record["enforced"].as_u64() > Some(0), "no cut was enforced");
    record_shortened(story, SHRINK_HUNG)?;
    story.verify_entry(story.contents.entry(ARCHIVE)?)?;
    Ok(format!(
        "truncate(2) returned after {} ms (deadline {DEADLINE_MS} ms), the importer's process ended with SIGBUS; \
         meanwhile the slowest read of another file took {} us",
        took.as_millis(),
        slowest.as_micros()
    ))
}

/// Does something while another thread reads a file over and over; answers the slowest such read too.
fn while_reading<T>(story: &Story, entry: &Entry, action: impl FnOnce() -> Result<T>) -> Result<(T, Duration)> {
    let done = AtomicBool::new(false);
    let slowest = AtomicU64::new(0);
    let path = story.sandbox.path(&entry.name);
    let outcome = std::thread::scope(|scope| {
        let reader = scope.spawn(|| -> Result<()> {
            while !done.load(Ordering::Relaxed) {
                let start = Instant::now();
                let content = read_uncached(&path)?;
                slowest.fetch_max(u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
                ensure!(crc32c::crc32c(&content) == entry.crc, "{}: the content has changed", entry.name);
            }
            Ok(())
        });
        let outcome = action();
        done.store(true, Ordering::Relaxed);
        reader.join().unwrap_or_else(|_| Err(anyhow::anyhow!("the reading thread panicked")))?;
        outcome
    })?;
    Ok((outcome, Duration::from_micros(slowest.into_inner())))
}
