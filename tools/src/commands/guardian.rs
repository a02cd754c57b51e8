//! `peerfs guardian` (hidden): the process that holds every window of a server
//! and ends them when the server dies.

use std::fs::OpenOptions;
use std::os::fd::AsFd;
use std::process::ExitCode;

use anyhow::{Context, Result};

pub fn run() -> Result<ExitCode> {
    let socket = std::io::stdin().as_fd().try_clone_to_owned().context("guardian: no socket on descriptor 0")?;
    let null = OpenOptions::new().read(true).write(true).open("/dev/null").context("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    // Whoever waits for the end of our caller's output does not wait for us.
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&null)?;
    peerfs_p2p::guardian::run(socket)?;
    Ok(ExitCode::SUCCESS)
}
