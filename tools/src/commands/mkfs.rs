//! `peerfs mkfs`

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use peerfs_blockdev::{DeviceSpec, OpenMode};
use peerfs_fs::store::{FormatOptions, MIN_DEVICE_BYTES, Summary, Volume, probe};
use serde_json::json;

use crate::args::MkfsArgs;
use crate::{config, controller, output};

/// A server that is just ending gets this long; a mounted volume is refused.
const LOCK_WAIT: Duration = Duration::from_secs(2);

pub fn run(args: MkfsArgs) -> Result<ExitCode> {
    let device = config::device(&args.device)?;
    if let DeviceSpec::Mem(_) = &device {
        bail!("{device}: a memory device lives no longer than its mount; `peerfs mount {device} MOUNTPOINT` makes the volume");
    }
    if let Some(size) = args.size.filter(|size| *size < MIN_DEVICE_BYTES) {
        bail!("{device}: {size} bytes are too few for a volume; give at least --size {MIN_DEVICE_BYTES}");
    }
    let _held = controller::hold(&device, LOCK_WAIT)?;
    let Some(path) = device.path() else {
        return report(&device, &format(&device, &args)?, args.json);
    };
    // Stores to a hole of a mapped file find out too late that the filesystem is full.
    let allocate = matches!(device, DeviceSpec::Pmem(..));
    let file = ImageFile::prepare(path, args.size, allocate).with_context(|| format!("mkfs {device}"))?;
    match format(&device, &args) {
        Ok(summary) => report(&device, &summary, args.json),
        Err(error) => {
            file.undo(path);
            Err(error)
        }
    }
}

fn format(device: &DeviceSpec, args: &MkfsArgs) -> Result<Summary> {
    let opened = device.open(None, OpenMode::ReadWrite, LOCK_WAIT)?;
    let options = FormatOptions { label: args.label.clone(), size_bytes: args.size, force: args.force };
    Volume::format(opened.device.clone(), &options)?;
    Ok(probe(&opened.device)?)
}

/// What was done to the image file, so that a refused mkfs leaves it as it was.
enum ImageFile {
    Untouched,
    Created,
    Extended { from: u64 },
}

impl ImageFile {
    fn prepare(path: &Path, size: Option<u64>, allocate: bool) -> Result<ImageFile> {
        let (size, metadata) = match (size, fs::metadata(path)) {
            (None, Ok(_)) => return Ok(ImageFile::Untouched),
            (None, Err(error)) => return Err(error).context("name an existing file, or make one with --size"),
            (Some(size), metadata) => (size, metadata.ok()),
        };
        let existing = metadata.as_ref().is_some();
        let regular = metadata.as_ref().is_none_or(fs::Metadata::is_file);
        let length = metadata.map_or(0, |metadata| metadata.len());
        if existing && (!regular || length >= size) {
            return Ok(ImageFile::Untouched);
        }
        let file: File =
            OpenOptions::new().write(true).create_new(!existing).open(path).context("the file cannot be made or extended")?;
        let made = if existing { ImageFile::Extended { from: length } } else { ImageFile::Created };
        let sized = match allocate {
            true => allocate_all(&file, size),
            false => file.set_len(size),
        };
        if let Err(error) = sized {
            made.undo(path);
            return Err(error).context("the file cannot be extended");
        }
        Ok(made)
    }

    fn undo(self, path: &Path) {
        let result = match self {
            ImageFile::Untouched => return,
            ImageFile::Created => fs::remove_file(path),
            ImageFile::Extended { from } => OpenOptions::new().write(true).open(path).and_then(|file| file.set_len(from)),
        };
        if let Err(error) = result {
            tracing::warn!(path = %path.display(), %error, "the file is not as it was before");
        }
    }
}

/// Gives a file its size, and blocks where the filesystem can.
fn allocate_all(file: &File, size: u64) -> io::Result<()> {
    let length = i64::try_from(size).map_err(|_| io::Error::from(Errno::EFBIG))?;
    match fallocate(file, FallocateFlags::empty(), 0, length) {
        Err(Errno::EOPNOTSUPP) => file.set_len(size),
        other => Ok(other?),
    }
}

fn report(device: &DeviceSpec, summary: &Summary, json: bool) -> Result<ExitCode> {
    if json {
        output::print_json(&json!({ "device": device.to_string(), "volume": serde_json::to_value(summary)? }))?;
    } else {
        let label = if summary.label.is_empty() { String::new() } else { format!(" \"{}\"", summary.label) };
        output::print(&format!(
            "{device}: {} volume{label} of {}, UUID {}\n",
            summary.format,
            output::bytes(summary.size_bytes),
            summary.uuid
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}
