//! The number of a process is used again. It runs in a PID namespace of its own, where the next number can be chosen.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use peerfs_abi::{MapFlags, Path as Way, Reason};

use super::host::{Puppet, parse};
use crate::backend::{ApertureSize, software_backends};
use crate::kit::ScratchMount;
use crate::kit::worker::say;

const NEXT_PID: &str = "/proc/sys/kernel/ns_last_pid";
/// Threads of the server take numbers too.
const TRIES: usize = 200;

/// Says what a process with the number of the one that made a context is answered.
pub(super) fn run(backend: &str, directory: &Path) -> Result<()> {
    ensure!(std::process::id() == 1, "not in a PID namespace of its own");
    let backends = software_backends();
    let backend = backends.iter().find(|known| known.name() == backend).context("no such backend")?;
    let scratch = backend.mount(ApertureSize::Usual, "")?;
    let path = scratch.join("file");
    fs::write(&path, [7; 4096]).with_context(|| directory.display().to_string())?;
    let answer = try_again(&scratch, &path)?;
    say(answer)
}

fn try_again(scratch: &ScratchMount, path: &Path) -> Result<&'static str> {
    let open = format!("open read {}", path.display());
    let map = format!("map 0 4096 {}", MapFlags::empty().bits());
    let mut first = Puppet::start_on(scratch, 0)?;
    first.obey(&open)?;
    first.obey(&format!("session {}", scratch.path().display()))?;
    let mapped = parse(&first.obey(&map)?)?;
    ensure!(mapped[0].path() != Way::Fallback, "the first process maps {mapped:?}");
    let (context, session, number) = (first.obey("context")?, first.take_session()?, first.pid());
    first.end()?;
    for _ in 0..TRIES {
        fs::write(NEXT_PID, (number - 1).to_string()).context(NEXT_PID)?;
        let mut second = Puppet::start_on(scratch, 0)?;
        if second.pid() != number {
            second.end()?;
            continue;
        }
        second.obey(&open)?;
        second.give(&session)?;
        second.obey(&format!("use {context}"))?;
        let answer = parse(&second.obey(&map)?)?;
        return Ok(answer[0].reason().map_or("direct", Reason::name));
    }
    bail!("the number {number} does not come again in {TRIES} tries")
}
