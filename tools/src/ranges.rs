//! Files of a mount as targets of a query or map, and the ranges asked for.

use std::fs::{self, OpenOptions};
use std::ops::Bound;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use peerfs_abi::names::{CUDA_PREFIX, IMPORTERS, importer_flags};
use peerfs_blockdev::pci::PciAddress;
use peerfs_client::{DecisionTable, Error, File, ImporterSpec, MapFlags, Path as Way, Reason, ReasonSet, Segment, TriggerSet};

use crate::args::RequestArgs;
use crate::failure::Usage;

/// Shortest range that can be decided.
const BLOCK_BYTES: u64 = 4096;

/// A range with or without an end.
pub type FileRange = (Bound<u64>, Bound<u64>);

/// Checks a range.
pub fn range(offset: u64, length: Option<u64>) -> Result<FileRange> {
    let end = match length {
        None => Bound::Unbounded,
        Some(0) => return Err(Usage("--length 0: an empty range has nothing to map".into()).into()),
        Some(length) => match offset.checked_add(length) {
            Some(end) => Bound::Excluded(end),
            None => return Err(Usage(format!("--offset {offset} --length {length}: beyond the largest file")).into()),
        },
    };
    Ok((Bound::Included(offset), end))
}

/// Flags of a map request.
pub fn flags(request: &RequestArgs) -> MapFlags {
    let chosen = [(request.pin, MapFlags::PIN), (request.write, MapFlags::WRITE), (request.atomic, MapFlags::ATOMIC)];
    chosen.into_iter().filter(|(wanted, _)| *wanted).fold(MapFlags::empty(), |flags, (_, flag)| flags | flag)
}

/// The importer that `NAME` or `NAME@PCI-ADDRESS` means when this process registers it.
pub fn importer(text: &str) -> Result<ImporterSpec> {
    check_address(text)?;
    let (name, pci_address) = match text.split_once('@') {
        Some((name, address)) => (name, Some(address.to_owned())),
        None => (text, None),
    };
    let Some(flags) = importer_flags(name) else { bail!("importer {name} is not known; use {}", known_importers()) };
    Ok(ImporterSpec { name: name.to_owned(), flags, pci_address, ..ImporterSpec::cpu() })
}

/// Refuses what is no address before the server does, which could not say why.
fn check_address(importer: &str) -> Result<(), Usage> {
    let address = importer.split_once('@').map(|(_, address)| address.parse::<PciAddress>());
    address.transpose().map(drop).map_err(|error| Usage(format!("--importer {importer}: {error}")))
}

/// The names of importers, for messages.
fn known_importers() -> String {
    let names: Vec<&str> = IMPORTERS.iter().map(|known| known.0).collect();
    format!("{}, or {CUDA_PREFIX}N for the GPU with number N", names.join(", "))
}

/// Opens a file past the page cache: for writing if wanted and possible. Where it is not, the decision says so.
pub fn open(path: &Path, write: bool) -> Result<File> {
    if write {
        match File::open_with(path, OpenOptions::new().read(true).write(true)) {
            Err(Error::System { source, .. }) if may_not_write(&source) => {}
            other => return Ok(other?),
        }
    }
    Ok(File::open(path)?)
}

fn may_not_write(error: &std::io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EACCES | Errno::EPERM | Errno::EROFS | Errno::EISDIR | Errno::ETXTBSY))
}

/// The decision table of whatever `path` names. Nothing changes.
pub fn query(request: &RequestArgs) -> Result<DecisionTable> {
    check_address(&request.importer)?;
    let path = &request.file;
    let metadata = fs::metadata(path).with_context(|| path.display().to_string())?;
    let kind = metadata.file_type();
    // A range without bytes has no answer, so one block is asked for.
    let nothing_there = !kind.is_file() || request.offset >= metadata.len();
    let length = request.length.or(nothing_there.then_some(BLOCK_BYTES));
    let wanted = range(request.offset, length)?;
    if !kind.is_file() && !kind.is_dir() {
        return special(path, request.offset, length.unwrap_or(BLOCK_BYTES));
    }
    let file = open(path, flags(request).writes())?;
    file.query(wanted, flags(request), &request.importer).map_err(|error| unknown_importer(error, request))
}

fn unknown_importer(error: Error, request: &RequestArgs) -> anyhow::Error {
    match &error {
        Error::System { source, .. } if source.raw_os_error() == Some(Errno::ENODEV as i32) => {
            anyhow::anyhow!("importer {} is not known to this mount; use {}", request.importer, known_importers())
        }
        _ => error.into(),
    }
}

/// Opening a device node or FIFO reaches its driver, never the filesystem; so its directory is asked whether it is ours.
fn special(path: &Path, offset: u64, length: u64) -> Result<DecisionTable> {
    File::open(directory_of(path)?)?.info()?;
    let segment = Segment {
        file_offset: offset,
        length,
        path: Way::Fallback,
        reason: Some(Reason::NotRegularFile),
        device_offset: None,
        pin: None,
        refusals: ReasonSet::EMPTY.with(Reason::NotRegularFile),
        triggers: TriggerSet::EMPTY,
    };
    Ok(DecisionTable { segments: vec![segment], end: offset + length, retry_after: None })
}

/// The directory that a file really is in.
pub fn directory_of(path: &Path) -> Result<PathBuf> {
    let real = path.canonicalize().with_context(|| path.display().to_string())?;
    if real.is_dir() {
        return Ok(real);
    }
    Ok(real.parent().map_or_else(|| PathBuf::from("/"), Path::to_owned))
}
