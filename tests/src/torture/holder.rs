//! Children that hold a mapping: as a good program does, by address, and by hand.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use peerfs_abi::{MapFlags, Reason};
use peerfs_client::{Error, File, ImporterSpec, Mapping, Session};
use peerfs_sys::Window;

use super::raw::{RawSession, direct_segments, open_direct, readable};
use super::worker::{die_with_parent, hear, say};

/// Reads through the library until the server is gone, which it says as `server-gone`. Before that it says `ready`,
/// `cut` whenever it finds its mapping revoked, and `direct LONGEST_MS` (its longest read) whenever it is direct again.
///
/// # Errors
/// When a call fails for any reason but the server's end.
pub fn library(path: &Path) -> Result<()> {
    die_with_parent()?;
    let directory = path.parent().context("a file is in a directory")?;
    let file = File::open(path)?;
    let session = Session::open(directory, ImporterSpec::cpu())?;
    let expected = std::fs::read(path)?;
    let outcome = read_on(&session, &file, &expected);
    match outcome.as_ref().map_err(|error| error.downcast_ref::<Error>()) {
        Err(Some(Error::ServerGone)) => say("server-gone"),
        _ => outcome,
    }
}

fn read_on(session: &Session, file: &File, expected: &[u8]) -> Result<()> {
    let mut buffer = vec![0; expected.len()];
    let mut mapping = map(session, file)?;
    let (mut direct, mut longest) = (true, Duration::ZERO);
    say("ready")?;
    loop {
        let start = Instant::now();
        let length = expected.len().min(mapping.range().end as usize);
        let moved = mapping.read_at(0, &mut buffer[..length])?;
        longest = longest.max(start.elapsed());
        ensure!(buffer[..length] == expected[..length], "wrong bytes were read");
        match (direct, moved.fallback > 0) {
            (true, true) => {
                direct = false;
                say("cut")?;
            }
            (false, false) => {
                direct = true;
                say(format!("direct {}", longest.as_millis()))?;
                longest = Duration::ZERO;
            }
            _ => {}
        }
        if !direct {
            mapping = map(session, file)?;
        }
    }
}

fn map(session: &Session, file: &File) -> Result<Mapping> {
    Ok(session.map(file, .., MapFlags::empty())?)
}

/// Loads the last page but one by address, never letting go, until SIGBUS ends it. Says `ready`.
///
/// # Errors
/// When the file is not mapped directly.
pub fn by_address(path: &Path) -> Result<()> {
    die_with_parent()?;
    let file = File::open(path)?;
    let session = Session::open(path.parent().context("a file is in a directory")?, ImporterSpec::cpu())?;
    let mut mapping = session.map(&file, .., MapFlags::empty())?;
    while mapping.segments().iter().any(|segment| segment.reason == Some(Reason::Busy)) {
        std::thread::sleep(mapping.retry_after().unwrap_or(Duration::from_millis(1)));
        mapping = session.map(&file, .., MapFlags::empty())?;
    }
    let end = mapping.range().end;
    let guard = mapping.access(end.saturating_sub(8192)..end.saturating_sub(4096))?;
    say("ready")?;
    loop {
        for index in 0..guard.len() {
            guard.load(index)?;
        }
    }
}

/// Holds windows by hand and answers to `probe` how many of their pages can still be read.
///
/// # Errors
/// When the file is not mapped directly.
pub fn by_hand(path: &Path) -> Result<()> {
    die_with_parent()?;
    let file = open_direct(path, false)?;
    let session = RawSession::open(path.parent().context("a file is in a directory")?)?;
    let answer = session.map_calmly(&file, 0, 0, MapFlags::empty())?;
    let mut held = Vec::new();
    for segment in direct_segments(&answer) {
        let fd = session.take(segment.grant_id, false)?;
        let window = Window::map(&fd, segment.grant_length as usize, false)?;
        held.push((fd, window));
    }
    ensure!(!held.is_empty(), "nothing is direct: {:?}", answer.segments[0]);
    say(format!("ready {}", held.iter().map(|(_, window)| readable(window)).sum::<usize>()))?;
    loop {
        ensure!(hear()? == "probe", "not a command");
        let mut pages = 0;
        for (fd, window) in &held {
            pages += readable(window);
            // A new mapping of the old descriptor shall not help either.
            pages += Window::map(fd, window.length(), false).map_or(0, |again| readable(&again));
        }
        say(format!("readable {pages}"))?;
    }
}
