//! A full device.

use std::fs::{self, File, FileTimes};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{FallocateFlags, fallocate};
use peerfs_sys::set_xattr;

use crate::torture::worker::shared_file;
use crate::{Random, ScratchMount};

/// Attributes of one file.
const ATTRIBUTES: u64 = 15;

/// Filling the device answers ENOSPC, keeps what is there, and deleting makes room again.
///
/// # Errors
/// When it does not.
pub fn full_device(seed: u64) -> Result<()> {
    let mut scratch = ScratchMount::new("64M", &[])?;
    let mut content = vec![0; 1 << 20];
    Random::new(seed).fill(&mut content);
    let kept = scratch.join("kept");
    shared_file(&kept, &content)?;
    for round in 0..3 {
        let bytes = fill_with_data(&scratch.join("filler"), &content)?;
        let files = fill_with_files(&scratch.join("small"))?;
        println!("round {round}: {} MiB of data, then {files} small files", bytes >> 20);
        ensure!(bytes > 16 << 20, "the device was full after {bytes} bytes");
        ensure!(scratch.alive() && fs::read(&kept)? == content, "what was there is damaged");
        if round == 1 {
            scratch.umount()?;
            scratch.fsck().context("of the full volume")?;
            scratch.mount(&[])?;
            ensure!(fs::read(&kept)? == content, "what was there is damaged");
        }
        fs::remove_file(scratch.join("filler")).context("deleting on the full device")?;
        fs::remove_dir_all(scratch.join("small")).context("deleting on the full device")?;
        shared_file(&scratch.join("again"), &content).context("writing after deleting")?;
        fs::remove_file(scratch.join("again"))?;
    }
    scratch.umount()?;
    scratch.fsck()
}

/// What fills the metadata.
#[derive(Debug, Clone, Copy)]
enum Filling {
    LongNames,
    ShortNames,
    Attributes,
}

/// Filling the device with metadata, so that it has no room, answers ENOSPC as well. What was answered as done can be
/// synced, is there after a crash, and can be changed and removed.
///
/// # Errors
/// When it does not, or cannot.
pub fn full_of_metadata() -> Result<()> {
    for filling in [Filling::LongNames, Filling::ShortNames, Filling::Attributes] {
        full_of(filling).with_context(|| format!("{filling:?}"))?;
    }
    Ok(())
}

fn full_of(filling: Filling) -> Result<()> {
    let mut scratch = ScratchMount::new("16M", &[])?;
    let directory = scratch.join("names");
    fs::create_dir(&directory)?;
    let kept = scratch.join("kept");
    shared_file(&kept, &[7; 64 << 10])?;
    let made = fill_with_metadata(&directory, filling)?;
    println!("{filling:?}: {made} of them");
    change_when_full(&kept).context("of what is there")?;
    File::open(&directory)?.sync_all().context("of what was answered as done")?;
    scratch.crash()?;
    scratch.fsck().context("of the full volume")?;
    scratch.mount(&[])?;
    ensure!(is_made(&directory, filling, made)?, "of {made} that were synced some are lost");
    fs::remove_dir_all(&directory).context("removing everything")?;
    File::open(scratch.path())?.sync_all().context("after removing everything")?;
    shared_file(&scratch.join("again"), &[]).context("a name after removing")?;
    scratch.umount()?;
    scratch.fsck()?;
    scratch.mount(&[])?;
    ensure!(!directory.exists() && scratch.join("again").exists(), "changes after the removal are lost");
    Ok(())
}

/// Whether so many are there.
fn is_made(directory: &Path, filling: Filling, made: u64) -> Result<bool> {
    let there = fs::read_dir(directory)?.count() as u64;
    Ok(match filling {
        // The last file may have none yet.
        Filling::Attributes => there >= made.div_ceil(ATTRIBUTES),
        _ => there == made && (0..made).all(|number| name_of(directory, filling, number).exists()),
    })
}

/// What needs no more room than is there.
fn change_when_full(kept: &Path) -> Result<()> {
    let file = File::options().write(true).open(kept)?;
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&file, punch, 4096, 8192).context("punching")?;
    file.set_times(FileTimes::new().set_modified(SystemTime::UNIX_EPOCH)).context("setting times")?;
    fs::rename(kept, kept.with_file_name("other")).context("renaming")?;
    file.set_len(0).context("truncating")?;
    fs::remove_file(kept.with_file_name("other")).context("removing")
}

fn name_of(directory: &Path, filling: Filling, number: u64) -> PathBuf {
    match filling {
        Filling::LongNames => directory.join(format!("{number:0200}")),
        Filling::ShortNames => directory.join(number.to_string()),
        Filling::Attributes => directory.join((number / ATTRIBUTES).to_string()),
    }
}

/// Makes names or attributes until there is no room; answers how many.
fn fill_with_metadata(directory: &Path, filling: Filling) -> Result<u64> {
    for number in 0..1_000_000 {
        let path = name_of(directory, filling, number);
        let made = match filling {
            Filling::Attributes if number % ATTRIBUTES > 0 => Ok(()),
            _ => File::create(&path).map(drop),
        };
        let made = made.and_then(|()| match filling {
            Filling::Attributes => set_xattr(&path, &format!("user.{number}"), &[b'v'; 4000]),
            _ => Ok(()),
        });
        match made {
            Ok(()) => {}
            Err(error) if is_full(&error) => return Ok(number),
            Err(error) => return Err(error).context("instead of ENOSPC"),
        }
    }
    bail!("16 MiB hold a million of them")
}

/// Writes until there is no room; answers how many bytes there was room for.
fn fill_with_data(path: &Path, content: &[u8]) -> Result<u64> {
    let mut file = File::create(path)?;
    let mut written = 0;
    loop {
        match file.write(content) {
            Ok(0) => bail!("a write of nothing"),
            Ok(count) => written += count as u64,
            Err(error) if is_full(&error) => break,
            Err(error) => return Err(error).context("instead of ENOSPC"),
        }
    }
    match file.sync_all() {
        Err(error) if !is_full(&error) => Err(error).context("fsync on a full device"),
        _ => Ok(written),
    }
}

/// Makes files until there is no room; answers how many there was room for.
fn fill_with_files(directory: &Path) -> Result<u64> {
    fs::create_dir(directory)?;
    for number in 0..20_000 {
        match fs::write(directory.join(number.to_string()), [1; 4096]) {
            Ok(()) => {}
            Err(error) if is_full(&error) => return Ok(number),
            Err(error) => return Err(error).context("instead of ENOSPC"),
        }
    }
    bail!("a full device takes 20,000 files")
}

fn is_full(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOSPC)
}
