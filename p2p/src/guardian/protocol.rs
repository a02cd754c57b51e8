//! Messages between server and guardian, on a SOCK_SEQPACKET pair.
//!
//! `Hold`, `HoldSequence`, `Lock` and `Ping` are answered with `Done` or
//! `Refused`; the others are not answered.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use peerfs_sys::receive_with_fd;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Hold = 1,
    Release = 2,
    HoldSequence = 3,
    ReleaseSequence = 4,
    Lock = 5,
    Ping = 6,
    Done = 7,
    Refused = 8,
}

impl Kind {
    fn from_code(code: u32) -> Option<Kind> {
        use Kind::*;
        [Hold, Release, HoldSequence, ReleaseSequence, Lock, Ping, Done, Refused].into_iter().find(|kind| *kind as u32 == code)
    }
}

#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
struct Wire {
    kind: u32,
    reserved: u32,
    id: u64,
}

const _: () = assert!(size_of::<Wire>() == 16);

#[derive(Debug)]
pub(super) struct Message {
    pub(super) kind: Kind,
    pub(super) id: u64,
    pub(super) fd: Option<OwnedFd>,
}

pub(super) fn send(socket: &OwnedFd, kind: Kind, id: u64, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let wire = Wire { kind: kind as u32, reserved: 0, id };
    let raw = fd.map(|fd| [fd.as_raw_fd()]);
    let rights = raw.as_ref().map(|raw| ControlMessage::ScmRights(raw));
    let parts = [IoSlice::new(wire.as_bytes())];
    loop {
        match sendmsg::<()>(socket.as_raw_fd(), &parts, rights.as_slice(), MsgFlags::MSG_NOSIGNAL, None) {
            Err(nix::errno::Errno::EINTR) => {}
            Err(err) => return Err(err.into()),
            Ok(_) => return Ok(()),
        }
    }
}

/// The next message; `None` once the other side is gone.
///
/// # Errors
/// `InvalidData` for what is no message (and when its descriptor did not fit); what recvmsg(2) answers.
pub(super) fn receive(socket: &OwnedFd) -> io::Result<Option<Message>> {
    let mut bytes = [0; size_of::<Wire>()];
    let (length, fd) = loop {
        match receive_with_fd(socket, &mut bytes) {
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            other => break other?,
        }
    };
    if length == 0 {
        return Ok(None);
    }
    let invalid = || io::Error::from(io::ErrorKind::InvalidData);
    let wire = Wire::read_from_bytes(&bytes[..length]).map_err(|_| invalid())?;
    let kind = Kind::from_code(wire.kind).ok_or_else(invalid)?;
    Ok(Some(Message { kind, id: wire.id, fd }))
}
