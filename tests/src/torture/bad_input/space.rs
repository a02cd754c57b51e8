//! A full device.

use std::fs::{self, File, FileTimes};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statvfs::statvfs;
use peerfs_blockdev::BLOCK_BYTES;
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

/// How blocks are taken.
#[derive(Debug, Clone, Copy)]
enum Taking {
    Buffered(usize),
    Direct(usize),
    Allocated(usize),
}

/// What statfs(2) says is available can be had, to the block, whichever way; and when it was given back, statfs(2) says
/// what it said before. Only the metadata may have grown meanwhile.
///
/// # Errors
/// When there is less or more, or another error than ENOSPC.
pub fn exact_room() -> Result<()> {
    // What there is room for is no multiple of 1 MiB.
    let mut scratch = ScratchMount::new("65556K", &[])?;
    let before = free_with_metadata(&scratch)?;
    for taking in [
        Taking::Buffered(4 << 10),
        Taking::Buffered(1 << 20),
        Taking::Direct(4 << 10),
        Taking::Direct(1 << 20),
        Taking::Allocated(1 << 20),
    ] {
        let (path, available) = (scratch.join("filler"), statvfs(&scratch.path())?.blocks_available() * BLOCK_BYTES);
        let taken = take_all(&path, taking).with_context(|| format!("{taking:?}"))?;
        ensure!(taken == available, "{taking:?}: {taken} bytes could be had of {available}");
        ensure!(statvfs(&scratch.path())?.blocks_available() == 0, "{taking:?}: there is more");
        if matches!(taking, Taking::Direct(_)) {
            scratch.crash()?;
            scratch.mount(&[])?;
        }
        fs::remove_file(&path)?;
        File::open(scratch.path())?.sync_all()?;
        let after = free_with_metadata(&scratch)?;
        ensure!(after == before, "{taking:?}: {before} blocks were free or the metadata's, now {after}");
    }
    scratch.umount()?;
    scratch.fsck()
}

fn free_with_metadata(scratch: &ScratchMount) -> Result<u64> {
    let metadata = scratch.info()?["volume"]["metadata_bytes"].as_u64().context("info.json has metadata_bytes")?;
    Ok(statvfs(&scratch.path())?.blocks_free() + metadata / BLOCK_BYTES)
}

/// Takes steps until there is no room, then blocks until there is none; answers how many bytes, which are synced.
fn take_all(path: &Path, taking: Taking) -> Result<u64> {
    let mut options = File::options();
    let (options, step) = match taking {
        Taking::Direct(step) => (options.custom_flags(libc::O_DIRECT), step),
        Taking::Buffered(step) | Taking::Allocated(step) => (&mut options, step),
    };
    let file = options.write(true).create_new(true).open(path)?;
    // On a page, so that a direct write of 1 MiB is one request.
    let content = vec![1; step + BLOCK_BYTES as usize];
    let content = &content[content.as_ptr().align_offset(BLOCK_BYTES as usize)..];
    let mut taken = 0;
    for step in [step, BLOCK_BYTES as usize] {
        let full = loop {
            let done = match taking {
                Taking::Allocated(_) => {
                    fallocate(&file, FallocateFlags::empty(), taken as i64, step as i64).map_err(io::Error::from).map(|()| step)
                }
                _ => file.write_at(&content[..step], taken),
            };
            match done {
                Ok(count) => taken += count as u64,
                Err(error) => break error,
            }
        };
        if !is_full(&full) {
            return Err(full).context("instead of ENOSPC");
        }
    }
    file.sync_all()?;
    Ok(taken)
}

/// What fills the metadata.
#[derive(Debug, Clone, Copy)]
enum Filling {
    Names,
    Attributes,
}

/// Filling the device with metadata, so that it has no room, answers ENOSPC as well. What was answered as done can be
/// synced, is there after a crash, and can be changed and removed.
///
/// # Errors
/// When it does not, or cannot.
pub fn full_of_metadata() -> Result<()> {
    for filling in [Filling::Names, Filling::Attributes] {
        full_of(filling).with_context(|| format!("{filling:?}"))?;
    }
    Ok(())
}

fn full_of(filling: Filling) -> Result<()> {
    let mut scratch = ScratchMount::new("8M", &[])?;
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
        Filling::Names => directory.join(format!("{number:0200}")),
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
    bail!("8 MiB hold a million of them")
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
