//! The child that sends garbage to the grant socket.

use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use peerfs_abi::ABI_VERSION;
use peerfs_abi::socket::{MAGIC, Reply, Request};
use zerocopy::{FromBytes, IntoBytes};

use crate::Random;
use crate::torture::raw::{RawSession, dial};
use crate::torture::worker::{die_with_parent, say};

/// Connections left open and silent.
const IDLE: usize = 64;

/// Sends `count` messages that deserve no descriptor, and holds connections that say nothing.
///
/// # Errors
/// When a descriptor is handed out, or the socket cannot be reached any more.
pub fn fuzz(path: &Path, seed: u64, count: u64) -> Result<()> {
    die_with_parent()?;
    let session = RawSession::open(path.parent().context("a file is in a directory")?)?;
    let mut random = Random::new(seed);
    let mut idle = Vec::new();
    let (mut refused, mut dropped) = (0, 0);
    for number in 0..count {
        let connection = match dial(&session.context) {
            Ok(connection) => connection,
            // So many silent connections are not served; giving one up makes room.
            Err(_) if idle.pop().is_some() => continue,
            Err(error) => return Err(error).with_context(|| format!("message {number}: the socket is gone")),
        };
        if random.one_in(8) && idle.len() < IDLE {
            idle.push(connection);
            continue;
        }
        send_garbage(&connection, &mut random)?;
        if random.one_in(4) {
            continue;
        }
        match answer(&connection)? {
            Some(reply) => {
                ensure!(reply.error != 0, "garbage was answered with success");
                refused += 1;
            }
            None => dropped += 1,
        }
    }
    say(format!("done {count} connections: {refused} refused, {dropped} closed, {} left silent", idle.len()))
}

fn send_garbage(connection: &OwnedFd, random: &mut Random) -> Result<()> {
    let mut request = Request { magic: MAGIC, abi_version: ABI_VERSION, grant_id: random.bits() };
    match random.below(4) {
        0 => request.magic = random.bits() as u32,
        1 => request.abi_version = random.bits() as u32 | 2,
        _ => {}
    }
    let mut bytes = request.as_bytes().to_vec();
    if random.one_in(3) {
        bytes.resize(random.below(5000) as usize, 0);
        random.fill(&mut bytes);
    }
    let fds = vec![connection.as_raw_fd(); 1 + random.below(100) as usize];
    let rights = [ControlMessage::ScmRights(&fds)];
    let attached = if random.one_in(3) { &rights[..] } else { &[] };
    match sendmsg::<()>(connection.as_raw_fd(), &[IoSlice::new(&bytes)], attached, MsgFlags::MSG_NOSIGNAL, None) {
        Ok(_) | Err(Errno::EPIPE | Errno::ECONNRESET | Errno::ETOOMANYREFS) => Ok(()),
        Err(error) => Err(error).context("sending"),
    }
}

/// The answer, or that the connection was closed.
fn answer(connection: &OwnedFd) -> Result<Option<Reply>> {
    let mut bytes = [0; size_of::<Reply>()];
    match peerfs_sys::receive_with_fd(connection, &mut bytes) {
        Ok((0, _)) => Ok(None),
        Ok((_, fd)) => {
            ensure!(fd.is_none(), "garbage was answered with a descriptor");
            Ok(Reply::read_from_bytes(&bytes).ok())
        }
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(None),
        Err(error) => Err(error).context("receiving"),
    }
}
