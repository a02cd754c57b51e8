use std::os::fd::AsRawFd;

use nix::sys::socket::connect;
use peerfs_sys::receive_with_fd;

use super::*;
use crate::api::GrantError;

/// Grant 1 belongs to this process; grant 2 to another process, grant 3 to another user.
struct Source;

impl GrantSource for Source {
    fn take(&self, id: GrantId, client: Client, _writable: Option<bool>) -> Result<OwnedFd, GrantError> {
        let own = Client { tgid: std::process::id(), uid: nix::unistd::getuid().as_raw() };
        let owner = match id.0 {
            1 => own,
            2 => Client { tgid: own.tgid + 1, ..own },
            3 => Client { uid: own.uid + 1, ..own },
            _ => return Err(GrantError::Gone),
        };
        if client != owner {
            return Err(GrantError::NotOwner);
        }
        std::fs::File::open("/dev/null").map(OwnedFd::from).map_err(|err| GrantError::Failed { reason: err.to_string() })
    }
}

fn client(path: &Path) -> OwnedFd {
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).expect("socket");
    connect(socket.as_raw_fd(), &UnixAddr::new(path).expect("path")).expect("connect");
    socket
}

fn exchange(socket: &OwnedFd, message: &[u8]) -> (Reply, Option<OwnedFd>) {
    nix::sys::socket::send(socket.as_raw_fd(), message, MsgFlags::empty()).expect("send");
    let mut bytes = [0; size_of::<Reply>()];
    let (length, fd) = receive_with_fd(socket, &mut bytes).expect("reply");
    assert_eq!(length, bytes.len());
    (Reply::read_from_bytes(&bytes).expect("reply"), fd)
}

fn ask(socket: &OwnedFd, grant_id: u64) -> (Reply, Option<OwnedFd>) {
    exchange(socket, Request { magic: MAGIC, abi_version: ABI_VERSION, grant_id }.as_bytes())
}

#[test]
fn only_the_owner_gets_the_descriptor() {
    let folder = tempfile::tempdir().expect("tempdir");
    let path = folder.path().join("grants");
    let server = GrantSocket::listen(&path, Arc::new(Source)).expect("listen");
    let socket = client(server.path());
    let (reply, fd) = ask(&socket, 1);
    assert_eq!(reply, Reply { magic: MAGIC, error: 0, grant_id: 1 });
    assert!(fd.is_some());
    for (grant, error) in [(2, Errno::EACCES), (3, Errno::EACCES), (4, Errno::ENOENT)] {
        let (reply, fd) = ask(&socket, grant);
        assert_eq!((reply.error, reply.grant_id), (error as u32, grant));
        assert!(fd.is_none());
    }
    drop(server);
    assert!(!path.exists());
}

#[test]
fn garbage_gets_an_error_and_hurts_nobody() {
    let folder = tempfile::tempdir().expect("tempdir");
    let server = GrantSocket::listen(&folder.path().join("grants"), Arc::new(Source)).expect("listen");
    let socket = client(server.path());
    for garbage in [&b"x"[..], &[0xff; 16], &[0; 17], &[7; 4000]] {
        let (reply, fd) = exchange(&socket, garbage);
        assert_eq!((reply.error, reply.magic), (Errno::EINVAL as u32, MAGIC));
        assert!(fd.is_none());
    }
    let other_version = Request { magic: MAGIC, abi_version: ABI_VERSION + 1, grant_id: 1 };
    assert_eq!(exchange(&socket, other_version.as_bytes()).0.error, Errno::EPROTONOSUPPORT as u32);
    // A descriptor that nobody asked for is not kept.
    let null = std::fs::File::open("/dev/null").expect("open");
    let raw = [null.as_raw_fd()];
    let parts = [IoSlice::new(b"mine")];
    sendmsg::<()>(socket.as_raw_fd(), &parts, &[ControlMessage::ScmRights(&raw)], MsgFlags::empty(), None).expect("send");
    let mut bytes = [0; 16];
    receive_with_fd(&socket, &mut bytes).expect("an answer");
    // Silent and vanishing connections beyond the bound do not keep others out.
    let crowd: Vec<OwnedFd> = (0..CONNECTIONS_MAX * 2).map(|_| client(server.path())).collect();
    assert_eq!(ask(&client(server.path()), 1).0.error, 0);
    drop(crowd);
    assert_eq!(ask(&client(server.path()), 1).0.error, 0);
}
