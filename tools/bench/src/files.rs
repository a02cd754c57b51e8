//! The files of jobs: laid out before the first transfer, opened as the engine needs them.

use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::{OFlag, PosixFadviseAdvice, posix_fadvise};

use crate::pattern::Region;
use crate::random::Random;
use crate::settings::EngineKind;
use crate::values::Extent;
use crate::{Error, Job};

/// How much is laid out with one write(2), bytes.
const PIECE: usize = 1 << 20;

/// Most blocks of a random map, of which each takes a bit.
const MOST_MAPPED: u64 = 1 << 33;

/// Makes the file of a clone as long as the job needs it, with bytes in it where they are read or mapped, and answers the part
/// that the job uses.
///
/// # Errors
/// [`Error::System`]; [`Error::Job`] when there is no size to go by.
pub fn prepare(job: &Job, clone: u32) -> Result<Region, Error> {
    let path = job.file(clone);
    let there = existing_bytes(&path)?;
    let region = region(job, &path, there.map_or(0, |there| there.bytes))?;
    let end = region.start + region.length;
    match there {
        Some(there) if there.is_device && there.bytes < end => Err(Error::system(
            "use",
            path.display(),
            std::io::Error::other(format!("the device has {} bytes, the job reaches to {end}", there.bytes)),
        )),
        Some(there) if there.bytes >= end => Ok(region),
        _ if job.settings.create_on_open && !needs_bytes(job) => Ok(region),
        there => {
            let from = there.map_or(0, |there| there.bytes);
            extend(job, &path, from, end).map_err(|source| Error::system("lay out", path.display(), source))?;
            Ok(region)
        }
    }
}

#[derive(Clone, Copy)]
struct Existing {
    bytes: u64,
    is_device: bool,
}

fn existing_bytes(path: &Path) -> Result<Option<Existing>, Error> {
    let fail = |source| Error::system("open", path.display(), source);
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(fail(error)),
    };
    if metadata.is_file() {
        return Ok(Some(Existing { bytes: metadata.len(), is_device: false }));
    }
    if !metadata.file_type().is_block_device() {
        return Err(fail(std::io::Error::other("it is neither a file nor a block device")));
    }
    let bytes = File::open(path).and_then(|mut device| device.seek(SeekFrom::End(0))).map_err(fail)?;
    Ok(Some(Existing { bytes, is_device: true }))
}

fn region(job: &Job, path: &Path, there: u64) -> Result<Region, Error> {
    let settings = &job.settings;
    let wrong =
        |what: &str| Err(Error::system("use", path.display(), std::io::Error::other(format!("job {}: {what}", job.name))));
    let whole = settings.file_size.unwrap_or(there);
    let start = settings.offset.of(whole);
    let rest = whole.saturating_sub(start);
    // A share of a file does not reach beyond it.
    let size = settings.size.map(|size| match size {
        Extent::Bytes(bytes) => bytes,
        Extent::Percent(_) => size.of(whole).min(rest),
    });
    let length = size.filter(|_| settings.file_size.is_none()).unwrap_or(rest);
    let unit = job.smallest_block();
    if length < unit {
        return wrong("there is no size to go by, or it is less than a block: give size=, or a file that is long enough");
    }
    if settings.access.random && job.has_random_map() && length / unit > MOST_MAPPED {
        return wrong("too many blocks to remember which were used: give norandommap, or larger blocks");
    }
    let total = settings.io_size.map_or(size.unwrap_or(length), |io_size| io_size.of(length));
    match start.checked_add(length).is_some_and(|end| i64::try_from(end).is_ok()) {
        true => Ok(Region { start, length, total }),
        false => wrong("offset and size reach beyond the largest file"),
    }
}

fn extend(job: &Job, path: &Path, from: u64, end: u64) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
    if !needs_bytes(job) {
        return file.set_len(end);
    }
    let mut piece = vec![0; PIECE];
    Random::new(job.settings.seed, 4).fill(&mut piece);
    let mut at = file.seek(SeekFrom::Start(from))?;
    while at < end {
        let count = usize::try_from(end - at).unwrap_or(PIECE).min(PIECE);
        file.write_all(&piece[..count])?;
        at += count as u64;
    }
    file.sync_all()
}

/// What was never written reads as a hole, and is not mapped directly.
fn needs_bytes(job: &Job) -> bool {
    job.settings.access.reads || matches!(job.settings.engine, EngineKind::Peerfs | EngineKind::Mmap)
}

/// Opens the file of a clone.
///
/// # Errors
/// [`Error::System`].
pub fn open(job: &Job, clone: u32) -> Result<File, Error> {
    let path = job.file(clone);
    let settings = &job.settings;
    let mut options = OpenOptions::new();
    options.read(settings.access.reads || settings.verify.is_some() || job.is(EngineKind::Mmap));
    options.write(settings.access.writes).create(settings.access.writes);
    if settings.direct {
        options.custom_flags(OFlag::O_DIRECT.bits());
    }
    let file = options.open(&path).map_err(|source| Error::system("open", path.display(), source))?;
    if settings.invalidate && !settings.direct {
        // Only a hint, also for fio.
        let _ = posix_fadvise(file.as_fd(), 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
    }
    Ok(file)
}

/// Removes the file that a clone used, if the job asks for that: never a device, nor a link to a file. Clones may share it.
pub fn remove(job: &Job, clone: u32) {
    let path = job.file(clone);
    if job.settings.unlink && fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_file()) {
        let _ = fs::remove_file(path);
    }
}
