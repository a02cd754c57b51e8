//! The hostile children.

use std::fs::File;
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use peerfs_abi::ioctl::{self, Map, Unmap};
use peerfs_abi::{ABI_VERSION, MapFlags};
use peerfs_sys::Window;
use zerocopy::FromZeros;

use crate::torture::attempts::{AFTER, DURING, DURING_READ, Loot, Outcome, own_fd, refused, vandalise};
use crate::torture::raw::{RawSession, direct_segments, open_direct, readable, request};
use crate::torture::worker::{die_with_parent, hear, say};

fn verdict(name: &str, outcome: Outcome) -> Result<()> {
    match outcome {
        Ok(()) => say(format!("ok {name}")),
        Err(what) => say(format!("BREACH {name}: {what}")),
    }
}

/// Holds a grant and attacks it as told: `take`, `pass`, `after`, or `vandalise`.
///
/// # Errors
/// When the file is not mapped directly.
pub fn hold(access: &str, path: &Path) -> Result<()> {
    die_with_parent()?;
    let writable = access == "write";
    let file = open_direct(path, writable)?;
    let session = RawSession::open(path.parent().context("a file is in a directory")?)?;
    let flags = if writable { MapFlags::WRITE } else { MapFlags::empty() };
    let answer = session.map_calmly(&file, 0, 0, flags)?;
    // The last one: the file ends inside its window.
    let segment = *direct_segments(&answer).last().with_context(|| format!("nothing is direct: {:?}", answer.segments[0]))?;
    say(format!("offer {} {} {}", segment.grant_id, session.context.context_id, answer.mapping_id))?;
    let order = hear()?;
    let stolen_write = !writable && session.context.transport == ioctl::transport::PASSTHROUGH;
    if stolen_write {
        verdict_of_taking(&session, segment.grant_id, order == "take")?;
    }
    let fd = session.take(segment.grant_id, writable)?;
    let window = Window::map(&fd, segment.grant_length as usize, writable)?;
    let loot = Loot { path: path.to_owned(), file, session, segment, fd, window, writable };
    match order.as_str() {
        "take" => attack(&loot, &first_window(&loot, &answer)?),
        "vandalise" => {
            vandalise(&loot);
            say("done")?;
            ensure!(hear()? == "end", "not the order that was due");
            verdict("reading after the revocation", if readable(&loot.window) == 0 { Ok(()) } else { Err("it can".into()) })
        }
        other => bail!("`{other}` is no order"),
    }
}

/// A grant to read, taken for writing.
fn verdict_of_taking(session: &RawSession, grant: u64, tell: bool) -> Result<()> {
    let outcome = refused(session.take(grant, true));
    if tell { verdict("taking a grant to read for writing", outcome) } else { Ok(()) }
}

/// The window with the hole.
fn first_window(loot: &Loot, answer: &Map) -> Result<Loot> {
    let segment = *direct_segments(answer).next().context("checked before")?;
    ensure!(segment.grant_id != loot.segment.grant_id, "the file lies in one window only");
    let fd = loot.session.take(segment.grant_id, loot.writable)?;
    let window = Window::map(&fd, segment.grant_length as usize, loot.writable)?;
    let session = RawSession::open(loot.path.parent().context("a file is in a directory")?)?;
    let file = loot.file.try_clone()?;
    Ok(Loot { path: loot.path.clone(), file, session, segment, fd, window, writable: loot.writable })
}

fn attack(loot: &Loot, first: &Loot) -> Result<()> {
    let (name, whole) = DURING[0];
    verdict(name, whole(first))?;
    let read_only = if loot.writable { &[][..] } else { DURING_READ };
    for (name, attempt) in DURING.iter().chain(read_only) {
        verdict(name, attempt(loot))?;
    }
    verdict("after all that, reading the whole window", whole(loot))?;
    say("ready")?;
    ensure!(hear()? == "pass", "not the order that was due");
    let fds = [loot.fd.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&fds)];
    sendmsg::<()>(std::io::stdin().as_fd().as_raw_fd(), &[IoSlice::new(b"x")], &rights, MsgFlags::empty(), None)?;
    ensure!(hear()? == "after", "not the order that was due");
    for (name, attempt) in AFTER {
        verdict(name, attempt(loot))?;
        verdict(name, attempt(first))?;
    }
    say("done")
}

/// Another user's process with the descriptor as standard input.
///
/// # Errors
/// When nobody listens any more.
pub fn heir(access: &str) -> Result<()> {
    die_with_parent()?;
    let fd = std::io::stdin().as_fd().try_clone_to_owned()?;
    let reopen = |write| std::fs::OpenOptions::new().read(true).write(write).open(own_fd(&fd));
    verdict("reopening a passed descriptor for writing", refused(reopen(true)))?;
    verdict("reopening a passed descriptor for reading", refused(reopen(false)))?;
    if access == "read" {
        verdict("mapping a passed descriptor for writing", refused(Window::map(&fd, 4096, true)))?;
    }
    let window = Window::map(&fd, 4096, false).ok();
    say("ready")?;
    // It ends with the cut; if it does not, the test's patience does.
    while window.as_ref().is_some_and(|window| readable(window) > 0) {
        std::thread::yield_now();
    }
    let again = Window::map(&fd, 4096, false).map_or(0, |again| readable(&again));
    verdict("mapping a passed descriptor after the cut", if again == 0 { Ok(()) } else { Err("readable".into()) })?;
    say("done")
}

/// A map that must fail, or fall back altogether.
fn not_mapped(file: &File, argument: &mut Map) -> Outcome {
    match peerfs_sys::ioctl(file, ioctl::MAP, argument) {
        Ok(_) if direct_segments(argument).next().is_some() => Err("granted".into()),
        _ => Ok(()),
    }
}

/// Another process of the same user that knows every number: grant, context, mapping.
///
/// # Errors
/// When it cannot even open a session of its own.
pub fn thief(access: &str, path: &Path, numbers: [u64; 3]) -> Result<()> {
    die_with_parent()?;
    let [grant, context, mapping] = numbers;
    let file = open_direct(path, access == "write")?;
    let session = RawSession::open(path.parent().context("a file is in a directory")?)?;
    verdict("taking another process's grant", refused(session.take(grant, false)))?;
    verdict("taking another process's grant for writing", refused(session.take(grant, true)))?;
    let mut argument = request(&file, 0, 4096, MapFlags::empty());
    argument.context_id = context;
    verdict("mapping for another process's context", not_mapped(&file, &mut argument))?;
    argument.context_id = session.context.context_id;
    argument.mapping_id = mapping;
    verdict("adding to another process's mapping", not_mapped(&file, &mut argument))?;
    let mut unmap = Unmap { abi_version: ABI_VERSION, mapping_id: mapping, ..Unmap::new_zeroed() };
    verdict("ending another process's mapping", refused(peerfs_sys::ioctl(&session.session, ioctl::UNMAP, &mut unmap)))?;
    say("done")
}
