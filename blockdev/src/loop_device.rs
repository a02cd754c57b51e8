//! The file below a loop device: whoever opens it by its own name must find it locked.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};

const LOOP_MAJOR: u64 = 7;

/// The file that a loop device shows from its first byte on; `None` for everything else, and for a file that was removed.
pub(crate) fn file_below(path: &Path) -> Option<PathBuf> {
    let metadata = fs::metadata(path).ok()?;
    if !metadata.file_type().is_block_device() || major(metadata.rdev()) != LOOP_MAJOR {
        return None;
    }
    let about = PathBuf::from(format!("/sys/dev/block/{LOOP_MAJOR}:{}/loop", minor(metadata.rdev())));
    let text = |name: &str| fs::read_to_string(about.join(name)).ok();
    // Several loop devices may show several parts of a file, each with a volume of its own.
    if text("offset")?.trim() != "0" {
        return None;
    }
    let below = PathBuf::from(text("backing_file")?.trim_end_matches('\n'));
    below.is_file().then_some(below)
}
