//! Documents whose commands are run, so that they stay true: the tutorial, and the page of messages.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

pub mod console;
pub mod messages;
pub mod pattern;
pub mod shell;
pub mod tutorial;

/// Unmounts what is mounted below a directory, whatever uses it.
fn tidy(directory: &Path, programs: &Path) -> Result<()> {
    for point in mounts_below(directory)? {
        let status = Command::new(programs.join("peerfs")).args(["umount", "--force", &point]).status()?;
        ensure!(status.success(), "{point} stays mounted");
    }
    Ok(())
}

fn mounts_below(directory: &Path) -> Result<Vec<String>> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    Ok(points.filter(|point| Path::new(point).starts_with(directory)).map(str::to_owned).collect())
}
