//! Programs of the host that the lab uses, with one clear line when one is missing or fails.

use std::io::ErrorKind;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Runs a program and answers its standard output.
///
/// # Errors
/// When it cannot be started (saying which package has it) or fails.
pub fn output(command: &mut Command, package: &str) -> Result<Vec<u8>> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = match command.stdin(Stdio::null()).output() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!("the program `{name}` is missing: install it (apt-get install {package})")
        }
        other => other.with_context(|| format!("{name} cannot be started"))?,
    };
    if !output.status.success() {
        bail!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(output.stdout)
}
