//! Real files of this machine, chosen the same way every time.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::contents::ARCHIVE;
use super::{Story, archive_bytes};
use crate::output;

/// Where machines keep files of all sizes.
const ROOTS: [&str; 3] = ["/usr/bin", "/usr/lib", "/usr/share"];
/// Files looked at in one root.
const LOOKED_AT: usize = 20_000;
/// Small files taken; from then on only large ones fill the volume.
const SMALL_FILES: usize = 1000;
const LARGE_BYTES: u64 = 512 << 10;
/// Seed of generated content and of the choice.
const SEED: u64 = 0x7065_6572_6673;
const GENERATED_BYTES: usize = 4 << 20;
/// Shortest useful file of a later step.
pub const LEAST_FILE_BYTES: usize = 64 << 10;

struct Candidate {
    path: PathBuf,
    length: u64,
}

/// The step: many files of many sizes, and one archive of several of them that is larger than the aperture.
pub fn copy_in(story: &mut Story) -> Result<String> {
    let archive_length = usize::try_from(archive_bytes(story.size))?;
    let wanted = story.size - archive_bytes(story.size);
    let mut archive = Vec::with_capacity(archive_length);
    let mut real = 0;
    fs::create_dir(story.sandbox.path("files")).context("the directory files cannot be made")?;
    let chosen = choose(wanted);
    for (number, candidate) in chosen.iter().enumerate() {
        // It may be unreadable for this user, or have gone meanwhile.
        let Ok(content) = fs::read(&candidate.path) else { continue };
        let name = candidate.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        story.make(&format!("files/{number:04}-{}", shortened(&name)), &content, true)?;
        real += content.len() as u64;
        let room = archive_length - archive.len();
        archive.extend_from_slice(&content[..content.len().min(room)]);
    }
    let files = story.contents.entries.len() as u64;
    let generated = generate(story, wanted.saturating_sub(real))?;
    let mut random = Random(SEED);
    while archive.len() < archive_length {
        archive.extend_from_slice(&random.next().to_le_bytes());
    }
    archive.truncate(archive_length);
    story.make(ARCHIVE, &archive, false)?;
    let made = match generated {
        0 => String::new(),
        bytes => format!("; too little can be read here, so {} are generated (seed {SEED:#x})", output::bytes(bytes)),
    };
    Ok(format!(
        "{} of this machine, {}{made}; {ARCHIVE} of {}; each synced",
        output::count(files, "file"),
        output::bytes(real),
        output::bytes(archive_length as u64)
    ))
}

/// A name that fits beside its number, cut between characters.
fn shortened(name: &str) -> String {
    name.chars().take(60).collect()
}

fn choose(wanted: u64) -> Vec<Candidate> {
    let mut candidates: Vec<Candidate> = ROOTS.iter().flat_map(|root| walk(Path::new(root))).collect();
    shuffle(&mut candidates);
    let (mut taken, mut small) = (0, 0);
    candidates.retain(|candidate| {
        let is_small = candidate.length < LARGE_BYTES;
        // No single file makes up most of the volume.
        let fits = taken < wanted && candidate.length <= (wanted / 8).min(wanted - taken);
        let take = fits && (!is_small || small < SMALL_FILES);
        if take {
            taken += candidate.length;
            small += usize::from(is_small);
        }
        take
    });
    candidates
}

/// Regular files below a directory in the order of their names.
fn walk(root: &Path) -> Vec<Candidate> {
    let mut found = Vec::new();
    let mut left = vec![root.to_owned()];
    while let Some(path) = left.pop() {
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        if metadata.is_dir() {
            let mut children: Vec<PathBuf> =
                fs::read_dir(&path).map(|entries| entries.flatten().map(|entry| entry.path()).collect()).unwrap_or_default();
            children.sort_unstable_by(|a, b| b.cmp(a));
            left.extend(children);
        } else if metadata.is_file() && metadata.len() > 0 {
            found.push(Candidate { path, length: metadata.len() });
        }
        if found.len() >= LOOKED_AT {
            break;
        }
    }
    found
}

fn shuffle(candidates: &mut [Candidate]) {
    let mut random = Random(SEED);
    for at in (1..candidates.len()).rev() {
        candidates.swap(at, (random.next() % (at as u64 + 1)) as usize);
    }
}

fn generate(story: &mut Story, bytes: u64) -> Result<u64> {
    let mut random = Random(SEED);
    let mut left = usize::try_from(bytes)?;
    let mut made = 0;
    while left >= LEAST_FILE_BYTES {
        let length = left.min(GENERATED_BYTES);
        let content: Vec<u8> = (0..length.div_ceil(8)).flat_map(|_| random.next().to_le_bytes()).take(length).collect();
        story.make(&format!("files/generated-{made}"), &content, true)?;
        made += length as u64;
        left -= length;
    }
    Ok(made)
}

/// xorshift64*: good enough for content and a choice.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}
