//! Messages to the grant socket: garbage, nearly valid ones, and ids that were really granted.

use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, sendmsg, socket};
use peerfs_abi::ABI_VERSION;
use peerfs_abi::socket::{MAGIC, Reply, Request};
use zerocopy::{FromBytes, IntoBytes};

use super::Tally;
use super::ioctls::{Fuzzer, some};

/// One message on a connection of its own, between ioctls that make and end grants.
pub(super) fn one(fuzzer: &mut Fuzzer<'_>, tally: &mut Tally) -> Result<()> {
    fuzzer.one(&mut Tally::default())?;
    let connection = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
    connect(connection.as_raw_fd(), &UnixAddr::new(fuzzer.stage.socket.path())?)?;
    let mut asked = Request { magic: MAGIC, abi_version: ABI_VERSION, grant_id: some(&mut fuzzer.random, &fuzzer.grants) };
    match fuzzer.random.below(6) {
        0 => asked.magic = fuzzer.random.bits() as u32,
        1 => asked.abi_version = fuzzer.random.bits() as u32,
        _ => {}
    }
    let mut bytes = asked.as_bytes().to_vec();
    if fuzzer.random.one_in(4) {
        bytes.resize(1 + fuzzer.random.below(5000) as usize, 0);
        fuzzer.random.fill(&mut bytes);
    }
    let fds = vec![connection.as_raw_fd(); 1 + fuzzer.random.below(100) as usize];
    let rights = [ControlMessage::ScmRights(&fds)];
    let attached = if fuzzer.random.one_in(4) { &rights[..] } else { &[] };
    match sendmsg::<()>(connection.as_raw_fd(), &[IoSlice::new(&bytes)], attached, MsgFlags::MSG_NOSIGNAL, None) {
        Ok(_) => {}
        Err(Errno::EPIPE | Errno::ECONNRESET | Errno::ETOOMANYREFS) => return Ok(()),
        Err(error) => return Err(error).context("sending"),
    }
    if fuzzer.random.one_in(8) {
        return Ok(());
    }
    let valid = bytes == asked.as_bytes() && asked.magic == MAGIC && asked.abi_version == ABI_VERSION;
    hear(&connection, valid && fuzzer.grants.contains(&asked.grant_id), tally)
}

fn hear(connection: &OwnedFd, granted: bool, tally: &mut Tally) -> Result<()> {
    let mut bytes = [0; size_of::<Reply>()];
    match peerfs_sys::receive_with_fd(connection, &mut bytes) {
        Ok((0, _)) => Ok(()),
        Ok((_, fd)) => {
            let reply = Reply::read_from_bytes(&bytes).ok().context("an answer")?;
            ensure!(fd.is_some() == (reply.error == 0), "a descriptor and an error do not go together: {reply:?}");
            ensure!(fd.is_none() || granted, "a descriptor was handed out that nobody was granted");
            tally.count(reply.error.cast_signed());
            Ok(())
        }
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(()),
        Err(error) => Err(error).context("receiving"),
    }
}
