//! Images that are damaged, cut short, or none.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::run::{must_fail, tool};
use crate::{Random, ScratchMount, words};

const BLOCK: usize = 4096;

/// The good image that others are made from.
struct Original {
    bytes: Vec<u8>,
    /// Blocks that are not all zeros.
    used: Vec<usize>,
}

/// Truncated, random and flipped images, `count` of the latter.
///
/// # Errors
/// When the tool crashes, hangs, or fails without a clear line.
pub fn images(seed: u64, count: u64) -> Result<()> {
    let mut random = Random::new(seed);
    let mut scratch = ScratchMount::new("16M", &[])?;
    populate(&scratch.path(), &mut random)?;
    scratch.umount()?;
    let clean = Original::load(&scratch.image())?;
    scratch.mount(&[])?;
    fs::write(scratch.join("last"), b"before the crash")?;
    File::open(scratch.join("last"))?.sync_all()?;
    scratch.crash()?;
    let crashed = Original::load(&scratch.image())?;

    for length in [1, 512, 4095, 4096, 8192, 1 << 20, (8 << 20) + 1, (16 << 20) - 4096] {
        try_image(&scratch, &clean.bytes[..length]).with_context(|| format!("cut to {length} bytes"))?;
    }
    let mut noise = vec![0; 1 << 20];
    random.fill(&mut noise);
    write_image(&scratch, &noise)?;
    must_fail(&words!["mount", scratch.device(), scratch.path()])?;
    must_fail(&words!["fsck", scratch.device()])?;

    let mut works = 0;
    for number in 0..count {
        let original = if number % 2 == 0 { &clean } else { &crashed };
        let (damaged, what) = original.damaged(&mut random);
        works += u64::from(try_image(&scratch, &damaged).with_context(|| format!("image {number}: {what}"))?);
    }
    println!("{count} damaged images: {works} could be mounted, {} answered a clear error", count - works);
    write_image(&scratch, &crashed.bytes)?;
    scratch.mount(&[])?;
    ensure!(fs::read(scratch.join("last"))? == b"before the crash", "the good image is not good any more");
    scratch.umount()?;
    scratch.fsck()
}

impl Original {
    fn load(path: &Path) -> Result<Original> {
        let bytes = fs::read(path)?;
        let used = bytes.chunks(BLOCK).enumerate().filter(|(_, block)| block.iter().any(|byte| *byte != 0)).map(|(n, _)| n);
        let used = used.collect();
        Ok(Original { bytes, used })
    }

    /// One of: a flipped bit, several, a block of noise, a block of zeros, two blocks exchanged. The superblocks come first and often.
    fn damaged(&self, random: &mut Random) -> (Vec<u8>, String) {
        let mut bytes = self.bytes.clone();
        let near = self.used.len().min(if random.one_in(2) { 4 } else { self.used.len() });
        let block = self.used[random.below(near as u64) as usize];
        let start = block * BLOCK;
        let what = match random.below(5) {
            0 | 1 => {
                let flips = 1 + random.below(3);
                for _ in 0..flips {
                    bytes[start + random.below(BLOCK as u64) as usize] ^= 1 << random.below(8);
                }
                format!("{flips} bits flipped")
            }
            2 => {
                random.fill(&mut bytes[start..start + BLOCK]);
                "noise".to_owned()
            }
            3 => {
                bytes[start..start + BLOCK].fill(0);
                "zeros".to_owned()
            }
            _ => {
                let other = *random.pick(&self.used);
                bytes[start..start + BLOCK].copy_from_slice(&self.bytes[other * BLOCK..(other + 1) * BLOCK]);
                format!("a copy of block {other}")
            }
        };
        (bytes, format!("{what} in block {block}"))
    }
}

fn populate(root: &Path, random: &mut Random) -> Result<()> {
    for number in 0..40 {
        let directory = root.join(format!("directory-{}", number % 5));
        fs::create_dir_all(&directory)?;
        let mut content = vec![0; random.below(20_000) as usize];
        random.fill(&mut content);
        fs::write(directory.join(format!("file-{number}")), content)?;
    }
    Ok(())
}

fn write_image(scratch: &ScratchMount, bytes: &[u8]) -> Result<()> {
    let file = OpenOptions::new().write(true).truncate(true).open(scratch.image())?;
    file.set_len(bytes.len() as u64)?;
    for (number, block) in bytes.chunks(BLOCK).enumerate().filter(|(_, block)| block.iter().any(|byte| *byte != 0)) {
        file.write_all_at(block, (number * BLOCK) as u64)?;
    }
    Ok(())
}

/// Every command that opens an image. Answers whether it could be mounted.
fn try_image(scratch: &ScratchMount, bytes: &[u8]) -> Result<bool> {
    write_image(scratch, bytes)?;
    tool(&words!["info", scratch.device()])?;
    tool(&words!["fsck", scratch.device()])?;
    let mounted = tool(&words!["mount", scratch.device(), scratch.path()])?.success;
    if mounted {
        // Files may be gone or have other bytes; reading them may fail, and must end.
        let outcome = use_it(&scratch.path());
        tool(&words!["umount", "--force", scratch.path()]).context("unmounting it")?;
        outcome?;
    }
    tool(&words!["fsck", "--repair", scratch.device()])?;
    Ok(mounted)
}

/// Reads everything and makes a file. The server may answer errors, but it must answer.
fn use_it(root: &Path) -> Result<()> {
    let mut directories = vec![root.to_owned()];
    let mut seen = 0;
    while let Some(directory) = directories.pop() {
        seen += 1;
        ensure!(seen < 1000, "the tree has no end");
        let Ok(entries) = fs::read_dir(&directory) else { continue };
        for entry in entries.map_while(Result::ok).take(1000) {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => directories.push(entry.path()),
                Ok(kind) if kind.is_file() && entry.metadata().is_ok_and(|data| data.len() < 1 << 24) => {
                    drop(fs::read(entry.path()))
                }
                _ => {}
            }
        }
    }
    let file = root.join("made-on-a-damaged-volume");
    if fs::write(&file, b"content").is_ok() {
        // What was accepted must be there.
        let back = fs::read(&file)?;
        ensure!(back == b"content", "a new file has other bytes");
    }
    fs::read(root.join(".peerfs/info.json")).context("the server died")?;
    Ok(())
}
