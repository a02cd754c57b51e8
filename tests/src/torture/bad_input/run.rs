//! Runs the tool with a limit on its time, and judges how it fails.

use std::ffi::OsStr;
use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use peerfs_sys::ProcessHandle;

use crate::peerfs;

/// Longest time any of these commands may take.
const LIMIT: Duration = Duration::from_secs(60);

/// How a command ended.
pub struct Ending {
    /// With success?
    pub success: bool,
    /// All it said, both streams.
    pub text: String,
}

/// Runs `peerfs ARGUMENTS`. Its output goes to a file, which a server in the background may keep open.
///
/// # Errors
/// When it hangs, is killed by a signal, or fails without one clear line.
pub fn tool<S: AsRef<OsStr>>(arguments: &[S]) -> Result<Ending> {
    let name = arguments.iter().map(|argument| argument.as_ref().to_string_lossy()).collect::<Vec<_>>().join(" ");
    let output = tempfile::NamedTempFile::new()?;
    let errors = tempfile::NamedTempFile::new()?;
    let mut child =
        Command::new(peerfs()).args(arguments).stdin(Stdio::null()).stdout(output.reopen()?).stderr(errors.reopen()?).spawn()?;
    let ended = ProcessHandle::open(child.id())?.wait_exit(LIMIT)?;
    if !ended {
        child.kill()?;
    }
    let status = child.wait()?;
    let said = String::from_utf8_lossy(&fs::read(errors.path())?).into_owned();
    ensure!(ended, "`peerfs {name}` hangs");
    let code = status.code().with_context(|| format!("`peerfs {name}` ended with {status}: {said}"))?;
    ensure!(!said.contains("internal error") && !said.contains("panicked"), "`peerfs {name}` panicked: {said}");
    if code != 0 {
        ensure!(said.lines().count() == 1, "`peerfs {name}` failed with {code} and {} lines: {said}", said.lines().count());
    }
    let text = fs::read_to_string(output.path())? + &said;
    Ok(Ending { success: code == 0, text })
}

/// As [`tool`], for a command that must fail.
///
/// # Errors
/// As [`tool`], or when it succeeds.
pub fn must_fail<S: AsRef<OsStr>>(arguments: &[S]) -> Result<String> {
    let ending = tool(arguments)?;
    let name = arguments.iter().map(|argument| argument.as_ref().to_string_lossy()).collect::<Vec<_>>().join(" ");
    ensure!(!ending.success, "`peerfs {name}` succeeds: {}", ending.text);
    println!("  {name}: {}", ending.text.trim());
    Ok(ending.text)
}
