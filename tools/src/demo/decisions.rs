//! The decision table: what the mount answers for requests of every kind.

use std::collections::BTreeSet;
use std::fs::OpenOptions;

use anyhow::{Result, ensure};
use peerfs_client::{File, MapFlags, Reason};

use super::Story;
use super::contents::{ARCHIVE, LINK, NEVER, PREALLOCATED, SPARSE, TINY, WRITTEN};
use crate::commands::query::refused;
use crate::output;
use crate::ranges;

/// Fewer distinct reasons would not show the point.
const LEAST_REASONS: usize = 6;

/// A question, and the answer it must get.
struct Probe {
    file: &'static str,
    asked: &'static str,
    offset: u64,
    length: Option<u64>,
    flags: MapFlags,
    importer: &'static str,
    writable: bool,
    /// `None`: everything directly.
    expected: Option<Reason>,
}

const PLAIN: Probe = Probe {
    file: WRITTEN,
    asked: "whole file",
    offset: 0,
    length: None,
    flags: MapFlags::empty(),
    importer: "cpu",
    writable: false,
    expected: None,
};

fn probes(aperture_bytes: u64) -> Vec<Probe> {
    let write = MapFlags::WRITE;
    vec![
        PLAIN,
        Probe { file: LINK, asked: "through the link", ..PLAIN },
        Probe { asked: "WRITE", flags: write, writable: true, ..PLAIN },
        Probe { file: SPARSE, expected: Some(Reason::Hole), ..PLAIN },
        Probe { file: PREALLOCATED, expected: Some(Reason::Unwritten), ..PLAIN },
        Probe {
            file: TINY,
            asked: "4096 bytes behind its end",
            offset: 4096,
            length: Some(4096),
            expected: Some(Reason::BeyondEof),
            ..PLAIN
        },
        Probe { asked: "100 bytes at 50", offset: 50, length: Some(100), expected: Some(Reason::Misaligned), ..PLAIN },
        Probe { file: NEVER, expected: Some(Reason::Policy), ..PLAIN },
        Probe { file: "files", asked: "a directory", length: Some(4096), expected: Some(Reason::NotRegularFile), ..PLAIN },
        Probe { asked: "WRITE, read-only handle", flags: write, expected: Some(Reason::ReadOnly), ..PLAIN },
        Probe { file: ARCHIVE, asked: "more than the aperture", expected: Some(Reason::ApertureFull), ..PLAIN },
        Probe {
            asked: "WRITE, importer readonly",
            flags: write,
            importer: "readonly",
            writable: true,
            expected: Some(Reason::WriteForbidden),
            ..PLAIN
        },
        Probe { asked: "ATOMIC", flags: MapFlags::ATOMIC, writable: true, ..PLAIN },
        Probe {
            asked: "ATOMIC, importer nonatomic",
            flags: MapFlags::ATOMIC,
            importer: "nonatomic",
            writable: true,
            expected: Some(Reason::AtomicUnsupported),
            ..PLAIN
        },
        Probe { asked: "PIN of a page, importer static", length: Some(4096), importer: "static", flags: MapFlags::PIN, ..PLAIN },
        Probe {
            file: ARCHIVE,
            asked: "PIN of half the aperture",
            length: Some(aperture_bytes / 2),
            flags: MapFlags::PIN,
            expected: Some(Reason::PinQuota),
            ..PLAIN
        },
        Probe { asked: "importer static, no PIN", importer: "static", expected: Some(Reason::NotifierRequired), ..PLAIN },
    ]
}

/// The step.
pub fn ask(story: &mut Story) -> Result<String> {
    let mut table = output::table(&["file", "asked for", "directly", "fallback", "reason", "what helps"], &[2, 3]);
    let mut reasons = BTreeSet::new();
    for probe in probes(story.aperture) {
        let path = story.sandbox.path(probe.file);
        let file = match probe.writable {
            true => File::open_with(&path, OpenOptions::new().read(true).write(true))?,
            false => File::open(&path)?,
        };
        let answer = file.query(ranges::range(probe.offset, probe.length)?, probe.flags, probe.importer)?;
        let found = refused(&answer.segments);
        ensure!(
            found.keys().copied().eq(probe.expected),
            "{}, {}: expected {}, answered {:?}",
            probe.file,
            probe.asked,
            probe.expected.map_or("direct", Reason::name),
            found
        );
        let reason = found.first_key_value();
        table.add_row([
            probe.file.to_owned(),
            probe.asked.to_owned(),
            output::bytes(answer.direct_bytes()),
            output::bytes(reason.map_or(0, |(_, bytes)| *bytes)),
            reason.map_or("-", |(reason, _)| reason.name()).to_owned(),
            reason.map_or("-", |(reason, _)| reason.remedy()).to_owned(),
        ]);
        reasons.extend(found.into_keys());
    }
    ensure!(reasons.len() >= LEAST_REASONS, "only {} distinct reasons", reasons.len());
    let aperture = output::bytes(story.aperture);
    Ok(format!("{}{} distinct reasons; aperture {aperture}; asking changed nothing", output::render(&table), reasons.len()))
}
