//! The files of the demo's volume, with the checksums they must have.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::fcntl::{FallocateFlags, PosixFadviseAdvice, fallocate, posix_fadvise};
use peerfs_abi::names::XATTR_DIRECT;

use super::{Story, corpus};
use crate::output;

/// The largest file: larger than the aperture.
pub const ARCHIVE: &str = "archive.bin";
/// Data, a hole, data.
pub const SPARSE: &str = "sparse.bin";
/// Allocated, never written.
pub const PREALLOCATED: &str = "preallocated.bin";
/// Ends in the middle of its only block.
pub const TINY: &str = "tiny.txt";
/// Policy never.
pub const NEVER: &str = "never.bin";
/// Symbolic link to [`TINY`].
pub const LINK: &str = "link";
/// Written through the device.
pub const WRITTEN: &str = "written.bin";
/// Shortened under a mapping.
pub const SHRINK: &str = "shrink.bin";
/// Shortened under a mapping of an importer that does not acknowledge.
pub const SHRINK_HUNG: &str = "shrink-hung.bin";

const PART_BYTES: usize = 1 << 20;
const TINY_TEXT: &[u8] = b"a tiny file\n";

/// A file that must read as recorded.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Name below the mount point.
    pub name: String,
    /// Bytes.
    pub length: u64,
    /// CRC-32C of the content.
    pub crc: u32,
    /// It can map everywhere: an ordinary file that fits into the aperture.
    pub ordinary: bool,
}

/// All files.
#[derive(Default)]
pub struct Contents {
    /// In the order of their making.
    pub entries: Vec<Entry>,
}

impl Contents {
    /// Records a file, in place of an earlier record.
    pub fn record(&mut self, name: &str, content: &[u8], ordinary: bool) {
        self.entries.retain(|entry| entry.name != name);
        let crc = crc32c::crc32c(content);
        self.entries.push(Entry { name: name.to_owned(), length: content.len() as u64, crc, ordinary });
    }

    /// A file by name.
    pub fn entry(&self, name: &str) -> Result<&Entry> {
        self.entries.iter().find(|entry| entry.name == name).with_context(|| format!("{name} was not made"))
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.entries.iter().map(|entry| entry.length).sum()
    }
}

/// Writes a file and makes it durable.
pub fn write_synced(path: &Path, content: &[u8]) -> Result<()> {
    let shown = || path.display().to_string();
    let mut file = File::create(path).with_context(shown)?;
    file.write_all(content).with_context(shown)?;
    file.sync_all().with_context(shown)
}

/// The bytes of a file, from the server and not from the page cache.
pub fn read_uncached(path: &Path) -> Result<Vec<u8>> {
    let mut file = File::open(path).with_context(|| path.display().to_string())?;
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    let mut content = Vec::new();
    file.read_to_end(&mut content).with_context(|| path.display().to_string())?;
    Ok(content)
}

impl Story {
    /// A file has the content it was given.
    pub fn verify_entry(&self, entry: &Entry) -> Result<()> {
        let content = read_uncached(&self.sandbox.path(&entry.name))?;
        ensure!(content.len() as u64 == entry.length, "{}: {} bytes instead of {}", entry.name, content.len(), entry.length);
        ensure!(crc32c::crc32c(&content) == entry.crc, "{}: the content has changed", entry.name);
        Ok(())
    }

    /// Makes a durable file and records it.
    pub fn make(&mut self, name: &str, content: &[u8], ordinary: bool) -> Result<()> {
        write_synced(&self.sandbox.path(name), content)?;
        self.contents.record(name, content, ordinary && content.len() as u64 <= self.aperture);
        Ok(())
    }
}

/// The step: files with holes, unwritten blocks, a policy, and those that later steps need.
pub fn make_special(story: &mut Story) -> Result<String> {
    let archive = fs::read(story.sandbox.path(ARCHIVE))?;
    let part = &archive[..PART_BYTES];
    let sparse = File::create(story.sandbox.path(SPARSE))?;
    sparse.write_all_at(part, 0)?;
    sparse.write_all_at(part, 2 * PART_BYTES as u64)?;
    sparse.sync_all()?;
    story.contents.record(SPARSE, &[part, &vec![0; PART_BYTES], part].concat(), false);

    let preallocated = File::create(story.sandbox.path(PREALLOCATED))?;
    fallocate(&preallocated, FallocateFlags::empty(), 0, 2 * PART_BYTES as i64)?;
    preallocated.sync_all()?;
    story.contents.record(PREALLOCATED, &vec![0; 2 * PART_BYTES], false);

    story.make(TINY, TINY_TEXT, true)?;
    std::os::unix::fs::symlink(TINY, story.sandbox.path(LINK))?;
    story.make(NEVER, part, false)?;
    peerfs_sys::set_xattr(&story.sandbox.path(NEVER), XATTR_DIRECT, b"never").context("setting the policy of a file")?;
    File::open(story.sandbox.path(NEVER))?.sync_all()?;

    let length = live_bytes(story.aperture);
    for name in [WRITTEN, SHRINK, SHRINK_HUNG] {
        story.make(name, &archive[..length], true)?;
    }
    Ok(format!(
        "{SPARSE} (a hole), {PREALLOCATED} (unwritten), {TINY} ({} bytes), {LINK} (symbolic), {NEVER} (policy never), 3 files of {}",
        TINY_TEXT.len(),
        output::bytes(length as u64)
    ))
}

/// Length of the files that are changed under live mappings: well inside the aperture.
fn live_bytes(aperture: u64) -> usize {
    let half = aperture / 2;
    usize::try_from((half >> 13 << 13).min(8 << 20)).unwrap_or(corpus::LEAST_FILE_BYTES)
}

/// The step: every file reads as written.
pub fn verify(story: &mut Story) -> Result<String> {
    for entry in &story.contents.entries {
        story.verify_entry(entry)?;
    }
    Ok(format!(
        "{}, {}: every checksum is right",
        output::count(story.contents.entries.len() as u64, "file"),
        output::bytes(story.contents.bytes())
    ))
}
