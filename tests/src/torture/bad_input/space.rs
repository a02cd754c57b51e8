//! A full device.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::torture::worker::shared_file;
use crate::{Random, ScratchMount};

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

/// Filling the device with names, so that the metadata has no room, answers ENOSPC as well. What was synced stays.
///
/// # Errors
/// When it does not, or when nothing can be removed any more.
pub fn full_of_names() -> Result<()> {
    let mut scratch = ScratchMount::new("16M", &[])?;
    let directory = scratch.join("names");
    fs::create_dir(&directory)?;
    let name = |number: u64| directory.join(format!("{number:0200}"));
    let synced = fill_with_names(&directory, name)?;
    // The last names before ENOSPC were not synced, and their commit may find no room; umount says so then.
    match scratch.umount() {
        Err(error) if error.to_string().contains("not closed in order") => println!("{error}"),
        outcome => outcome?,
    }
    scratch.fsck().context("of the full volume")?;
    scratch.mount(&[])?;
    for number in 0..synced {
        ensure!(name(number).exists(), "synced file {number} of {synced} is lost");
    }
    fs::remove_dir_all(&directory).context("removing everything")?;
    File::open(scratch.path())?.sync_all().context("after removing everything")?;
    shared_file(&scratch.join("again"), &[1; 1 << 20]).context("writing after deleting")?;
    scratch.umount()?;
    scratch.fsck()?;
    scratch.mount(&[])?;
    ensure!(!directory.exists() && fs::read(scratch.join("again"))? == [1; 1 << 20], "changes after the removal are lost");
    Ok(())
}

/// Makes names until there is no room; answers how many of them were synced.
fn fill_with_names(directory: &Path, name: impl Fn(u64) -> PathBuf) -> Result<u64> {
    let mut synced = 0;
    for number in 0..1_000_000 {
        let made = File::create(name(number)).and_then(|_| match number % 500 {
            499 => File::open(directory)?.sync_all(),
            _ => Ok(()),
        });
        match made {
            Ok(()) if number % 500 == 499 => synced = number + 1,
            Ok(()) => {}
            Err(error) if is_full(&error) => {
                println!("{number} files of 200 characters, {synced} of them synced");
                return Ok(synced);
            }
            Err(error) => return Err(error).context("instead of ENOSPC"),
        }
    }
    bail!("16 MiB hold a million names")
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
