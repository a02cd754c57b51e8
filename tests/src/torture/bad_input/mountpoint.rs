//! Mount points that are none, and devices that are none.

use std::fs;

use anyhow::{Result, ensure};

use super::run::must_fail;
use crate::{ScratchMount, words};

/// Mounting where one cannot, and what is no device, answers a clear error and changes nothing.
///
/// # Errors
/// When it does not.
pub fn mountpoints() -> Result<()> {
    let mut scratch = ScratchMount::new("64M", &[])?;
    let device = scratch.device();
    fs::write(scratch.join("kept"), b"kept")?;
    scratch.umount()?;

    let full = scratch.directory().join("full");
    fs::create_dir(&full)?;
    fs::write(full.join("file"), b"in the way")?;
    let file = scratch.directory().join("file");
    fs::write(&file, b"no directory")?;
    let missing = scratch.directory().join("missing");
    for place in [&full, &file, &missing] {
        let said = must_fail(&words!["mount", &device, place])?;
        ensure!(said.contains(&*place.to_string_lossy()), "the message does not name {}", place.display());
    }
    ensure!(fs::read(full.join("file"))? == b"in the way" && fs::read(&file)? == b"no directory", "a file was changed");

    let nowhere = format!("image:{}", scratch.directory().join("no-image").display());
    let empty = scratch.directory().join("empty.img");
    fs::write(&empty, b"")?;
    for device in
        [&nowhere, &format!("image:{}", empty.display()), &"nvme:nonsense".to_owned(), &format!("image:{}", full.display())]
    {
        must_fail(&words!["mount", device, scratch.path()])?;
        must_fail(&words!["fsck", device])?;
        must_fail(&words!["info", device])?;
    }
    for options in ["cmb=lots", "deadline_ms=0", "direct=perhaps", "no-such-option", "commit=-1"] {
        must_fail(&words!["mount", &device, scratch.path(), "-o", options])?;
    }

    scratch.mount(&[])?;
    let elsewhere = scratch.directory().join("elsewhere");
    fs::create_dir(&elsewhere)?;
    must_fail(&words!["mkfs", &device])?;
    must_fail(&words!["fsck", &device])?;
    ensure!(fs::read(scratch.join("kept"))? == b"kept", "the volume was changed");
    scratch.umount()?;
    must_fail(&words!["umount", scratch.path()])?;
    scratch.fsck()
}
