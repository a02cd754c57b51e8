//! Hands descriptors of grants out over a Unix socket, for servers that may not
//! use FUSE passthrough.
//!
//! Every message carries its sender's credentials, which the kernel fills in. The
//! credentials of the connection would be those of whoever connected, perhaps a
//! parent of the sender.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, bind, listen, recvmsg,
    sendmsg, setsockopt, socket, sockopt,
};
use peerfs_abi::ABI_VERSION;
use peerfs_abi::socket::{MAGIC, Reply, Request};
use zerocopy::{FromBytes, IntoBytes};

use crate::api::{Client, GrantSource};
use crate::types::GrantId;

/// Connections at one time. One more, and the one that was silent longest is closed.
const CONNECTIONS_MAX: usize = 64;

/// A listening grant socket; dropping it ends its thread and removes the path.
#[derive(Debug)]
pub struct GrantSocket {
    path: PathBuf,
    stop: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl GrantSocket {
    /// Listens at `path`, which must not exist, in a directory that only trusted users can write to.
    ///
    /// # Errors
    /// What socket(2), bind(2), listen(2), eventfd(2) and the start of a thread answer.
    pub fn listen(path: &Path, source: Arc<dyn GrantSource>) -> io::Result<GrantSocket> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let listener = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
        // Connections inherit it, so no message comes without credentials.
        setsockopt(&listener, sockopt::PassCred, &true)?;
        bind(listener.as_raw_fd(), &UnixAddr::new(path)?)?;
        listen(&listener, Backlog::new(CONNECTIONS_MAX as i32)?)?;
        let stop = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let mut server = Server { listener: listener.into(), stop: stop.clone(), connections: VecDeque::new(), source };
        let thread = thread::Builder::new().name("peerfs-grants".into()).spawn(move || server.serve())?;
        Ok(GrantSocket { path: path.to_owned(), stop, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for GrantSocket {
    fn drop(&mut self) {
        // An event counter that is full wakes the thread as well.
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            // It can only have panicked, which was reported.
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

struct Server {
    /// The type says stream; only accept(2) and poll(2) are used, which do not care.
    listener: UnixListener,
    stop: Arc<EventFd>,
    /// The one that was silent longest first.
    connections: VecDeque<OwnedFd>,
    source: Arc<dyn GrantSource>,
}

impl Server {
    fn serve(&mut self) {
        loop {
            let ready = match self.wait() {
                Ok(ready) => ready,
                Err(err) => {
                    tracing::error!("the grant socket stops serving: {err}");
                    return;
                }
            };
            if ready.stop {
                return;
            }
            // From the back, so that indices stay valid while connections move.
            for index in ready.connections.into_iter().rev() {
                self.serve_connection(index);
            }
            if ready.listener {
                self.accept();
            }
        }
    }

    fn wait(&self) -> io::Result<Ready> {
        let interest = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut polled = vec![interest(self.stop.as_fd()), interest(self.listener.as_fd())];
        polled.extend(self.connections.iter().map(|connection| interest(connection.as_fd())));
        loop {
            match poll(&mut polled, PollTimeout::NONE) {
                Err(Errno::EINTR) => {}
                Err(err) => return Err(err.into()),
                Ok(_) => break,
            }
        }
        let woken = |polled: &PollFd<'_>| polled.any().unwrap_or(true);
        Ok(Ready {
            stop: woken(&polled[0]),
            listener: woken(&polled[1]),
            connections: (0..self.connections.len()).filter(|index| woken(&polled[index + 2])).collect(),
        })
    }

    fn accept(&mut self) {
        match self.listener.accept() {
            Ok((connection, _)) => {
                if self.connections.len() >= CONNECTIONS_MAX {
                    self.connections.pop_front();
                }
                if connection.set_nonblocking(true).is_ok() {
                    self.connections.push_back(connection.into());
                }
            }
            Err(err) if matches!(err.raw_os_error(), Some(code) if [Errno::EMFILE as i32, Errno::ENFILE as i32].contains(&code)) =>
            {
                // Makes room for the next attempt.
                self.connections.pop_front();
            }
            Err(_) => {}
        }
    }

    /// Answers one message. A connection that failed or does not take its answer is closed.
    fn serve_connection(&mut self, index: usize) {
        let Some(connection) = self.connections.remove(index) else {
            return;
        };
        let asked = match receive(&connection) {
            Ok(None) => return,
            Err(Errno::EAGAIN | Errno::EINTR) => {
                self.connections.push_back(connection);
                return;
            }
            Err(_) => return,
            Ok(Some(asked)) => asked,
        };
        if self.answer(&connection, asked).is_ok() {
            self.connections.push_back(connection);
        }
    }

    fn answer(&self, connection: &OwnedFd, asked: Asked) -> nix::Result<()> {
        let id = asked.request.map_or(0, |request| request.grant_id);
        let taken =
            self.check(&asked).and_then(|client| self.source.take(GrantId(id), client, None).map_err(|err| err.errno() as u32));
        let (error, fd) = match taken {
            Ok(fd) => (0, Some(fd)),
            Err(error) => (error, None),
        };
        reply(connection, Reply { magic: MAGIC, error, grant_id: id }, fd)
    }

    fn check(&self, asked: &Asked) -> Result<Client, u32> {
        let request = asked.request.ok_or(Errno::EINVAL as u32)?;
        if request.magic != MAGIC {
            return Err(Errno::EINVAL as u32);
        }
        if request.abi_version != ABI_VERSION {
            return Err(Errno::EPROTONOSUPPORT as u32);
        }
        asked.client.ok_or(Errno::EACCES as u32)
    }
}

struct Ready {
    stop: bool,
    listener: bool,
    connections: Vec<usize>,
}

struct Asked {
    /// `None`: garbage.
    request: Option<Request>,
    /// `None`: the kernel named no sender (it lives in a namespace that we cannot see).
    client: Option<Client>,
}

/// One message; `None`: the other side is gone. Descriptors sent along do not fit and are closed by the kernel.
fn receive(connection: &OwnedFd) -> nix::Result<Option<Asked>> {
    let mut bytes = [0; 64];
    let mut space = nix::cmsg_space!(nix::sys::socket::UnixCredentials);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let message = recvmsg::<()>(connection.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let length = message.bytes;
    let mut client = None;
    if let Ok(controls) = message.cmsgs() {
        for control in controls {
            if let ControlMessageOwned::ScmCredentials(sender) = control {
                let known = |pid: &u32| *pid != 0;
                client = u32::try_from(sender.pid()).ok().filter(known).map(|tgid| Client { tgid, uid: sender.uid() });
            }
        }
    }
    if length == 0 {
        return Ok(None);
    }
    Ok(Some(Asked { request: Request::read_from_bytes(&bytes[..length]).ok(), client }))
}

fn reply(connection: &OwnedFd, reply: Reply, fd: Option<OwnedFd>) -> nix::Result<()> {
    let raw = fd.as_ref().map(|fd| [fd.as_raw_fd()]);
    let rights = raw.as_ref().map(|raw| ControlMessage::ScmRights(raw));
    let parts = [IoSlice::new(reply.as_bytes())];
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    sendmsg::<()>(connection.as_raw_fd(), &parts, rights.as_slice(), flags, None).map(drop)
}

#[cfg(all(test, not(shuttle)))]
mod tests;
