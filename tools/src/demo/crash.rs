//! The server dies; its memory must not be taken for the file's, and nothing synced may be lost.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use peerfs_client::{Error, File, ImporterSpec, MapFlags, Mapping, Session};

use super::contents::{ARCHIVE, SHRINK_HUNG, WRITTEN};
use super::{Story, cmb_bytes};
use crate::output;

/// The guardian acts within milliseconds; a machine under load gets time.
const GUARDIAN_WAIT: Duration = Duration::from_secs(10);

/// The step: SIGKILL, with one importer on raw addresses and one on the library.
pub fn kill_server(story: &mut Story) -> Result<String> {
    let helper = story.sandbox.start_hung(&story.sandbox.path(SHRINK_HUNG))?;
    let session = Session::open(story.sandbox.mountpoint(), ImporterSpec::cpu())?;
    let file = File::open(story.sandbox.path(WRITTEN))?;
    let mapping = session.map(&file, .., MapFlags::empty())?;
    ensure!(mapping.segments().iter().all(|segment| segment.reason.is_none()), "{WRITTEN} does not map directly");
    let server = story.sandbox.server()?;
    server.kill()?;
    let start = Instant::now();
    ensure!(server.wait_exit(GUARDIAN_WAIT)?, "the server survived SIGKILL");
    helper.ended_by_sigbus()?;
    let sigbus = start.elapsed();
    refused_for_good(&mapping)?;
    story.totals.add(&mapping);
    Ok(format!(
        "the importer on raw addresses ended with SIGBUS {} ms after the kill; the library answers: {}",
        sigbus.as_millis(),
        Error::ServerGone
    ))
}

/// The library notices, and then never answers with bytes again.
fn refused_for_good(mapping: &Mapping) -> Result<()> {
    let end = Instant::now() + GUARDIAN_WAIT;
    let mut page = vec![0; 4096];
    loop {
        match mapping.read_at(mapping.range().start, &mut page) {
            Err(Error::ServerGone) => break,
            Err(other) => return Err(other.into()),
            Ok(_) if Instant::now() > end => bail!("a mapping of the dead server still answers with bytes"),
            Ok(_) => std::thread::yield_now(),
        }
    }
    ensure!(matches!(mapping.read_at(mapping.range().start, &mut page), Err(Error::ServerGone)), "it answers again");
    Ok(())
}

/// The step.
pub fn mount_again(story: &mut Story) -> Result<String> {
    let start = Instant::now();
    story.sandbox.unmount()?;
    story.sandbox.mount(cmb_bytes(story.size))?;
    let took = start.elapsed();
    for entry in &story.contents.entries {
        story.verify_entry(entry)?;
    }
    // Mapping works as before.
    let session = Session::open(story.sandbox.mountpoint(), ImporterSpec::cpu())?;
    let table = session.query(&File::open(story.sandbox.path(ARCHIVE))?, .., MapFlags::empty())?;
    ensure!(table.direct_bytes() > 0, "nothing maps directly any more");
    Ok(format!(
        "unmounted, checked and mounted in {} ms; {}, {}: every checksum is right",
        took.as_millis(),
        output::count(story.contents.entries.len() as u64, "file"),
        output::bytes(story.contents.bytes())
    ))
}

/// The step.
pub fn unmount_and_check(story: &mut Story) -> Result<String> {
    story.sandbox.unmount()?;
    story.sandbox.peerfs(&["fsck", &story.sandbox.device()])
}
