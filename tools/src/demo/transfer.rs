//! Moving bytes through mappings, and comparing them with read(2) and write(2).

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs::{self, OpenOptions};
use std::time::Instant;

use anyhow::{Result, ensure};
use peerfs_client::{Attestation, File, ImporterSpec, MapFlags, Mapping, Reason, Session};

use super::Story;
use super::contents::{Entry, WRITTEN};
use crate::commands::query::refused;
use crate::output;

/// Bytes by the way they went.
#[derive(Default)]
pub struct Totals {
    moved: Attestation,
    reasons: BTreeMap<Reason, u64>,
}

impl Totals {
    /// Adds what went through a mapping.
    pub fn add(&mut self, mapping: &Mapping) {
        self.moved += mapping.moved();
        for (reason, bytes) in refused(mapping.segments()) {
            *self.reasons.entry(reason).or_default() += bytes;
        }
    }

    /// The summary.
    pub fn text(&self) -> String {
        let mut text = format!(
            "bytes through mappings: {} direct-window, {} direct-bar, {} fallback\n",
            output::bytes(self.moved.direct_window),
            output::bytes(self.moved.direct_bar),
            output::bytes(self.moved.fallback)
        );
        for (reason, bytes) in &self.reasons {
            let _ = writeln!(text, "    fallback, {}: {} ({})", reason.name(), output::bytes(*bytes), reason.text());
        }
        let explained: u64 = self.reasons.values().sum();
        let _ =
            writeln!(text, "    fallback, after a revocation: {}", output::bytes(self.moved.fallback.saturating_sub(explained)));
        text
    }
}

/// Reads a whole mapping.
pub fn read_mapping(mapping: &Mapping) -> Result<(Vec<u8>, Attestation)> {
    let range = mapping.range();
    let mut content = vec![0; usize::try_from(range.end - range.start)?];
    let moved = mapping.read_at(range.start, &mut content)?;
    content.truncate(usize::try_from(moved.total())?);
    Ok((content, moved))
}

/// The step: the law. Every file, every byte.
pub fn map_and_compare(story: &mut Story) -> Result<String> {
    let session = Session::open(story.sandbox.mountpoint(), ImporterSpec::cpu())?;
    let start = Instant::now();
    let mut ordinary = Attestation::default();
    let mut all = Attestation::default();
    let entries = story.contents.entries.clone();
    for entry in &entries {
        let moved = compare_one(story, &session, entry)?;
        all += moved;
        if entry.ordinary {
            ordinary += moved;
        }
    }
    ensure!(ordinary.fallback == 0, "{} of ordinary files fell back", output::bytes(ordinary.fallback));
    ensure!(all.direct() > 0 && all.fallback > 0, "both ways must be taken");
    Ok(format!(
        "{} equal, {} directly and {} by fallback; ordinary files 100 % directly; {:.0} MB/s, both reads together",
        output::count(entries.len() as u64, "file"),
        output::bytes(all.direct()),
        output::bytes(all.fallback),
        2.0 * all.total() as f64 / 1e6 / start.elapsed().as_secs_f64()
    ))
}

fn compare_one(story: &mut Story, session: &Session, entry: &Entry) -> Result<Attestation> {
    let path = story.sandbox.path(&entry.name);
    let mapping = session.map(&File::open(&path)?, .., MapFlags::empty())?;
    let (mapped, moved) = read_mapping(&mapping)?;
    let read = fs::read(&path)?;
    ensure!(mapped == read, "{}: the mapping and read(2) show different bytes", entry.name);
    ensure!(crc32c::crc32c(&mapped) == entry.crc, "{}: the content has changed", entry.name);
    story.totals.add(&mapping);
    mapping.unmap()?;
    Ok(moved)
}

/// The step: stores of a device are what read(2) sees next, and fsync keeps them.
pub fn write_through(story: &mut Story) -> Result<String> {
    let path = story.sandbox.path(WRITTEN);
    let mut expected = fs::read(&path)?;
    let session = Session::open(story.sandbox.mountpoint(), ImporterSpec::cpu())?;
    let file = File::open_with(&path, OpenOptions::new().read(true).write(true))?;
    let mapping = session.map(&file, .., MapFlags::WRITE)?;
    for (at, byte) in expected.iter_mut().enumerate() {
        *byte ^= (at % 251) as u8;
    }
    let moved = mapping.write_at(0, &expected)?;
    ensure!(moved.fallback == 0, "{} were written by fallback", output::bytes(moved.fallback));
    let start = Instant::now();
    let read = fs::read(&path)?;
    let took = start.elapsed();
    ensure!(read == expected, "read(2) does not show what the device wrote");
    story.totals.add(&mapping);
    mapping.unmap()?;
    fs::File::open(&path)?.sync_all()?;
    story.contents.record(WRITTEN, &expected, true);
    Ok(format!(
        "{} stored directly; read(2) took the mapping back ({} heard) and saw every byte in {:.1} ms",
        output::bytes(moved.direct()),
        output::count(session.revocations(), "revocation"),
        took.as_secs_f64() * 1e3
    ))
}
