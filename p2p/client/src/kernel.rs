//! The real seam: ioctls, the control directory and the grant socket of a mount.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, getsockopt, send, socket};
use nix::sys::stat::Mode;
use peerfs_abi::devmem::{self, DeviceMemory};
use peerfs_abi::ioctl::{self, Ack, Context, DeviceCopy, Event, Info, Map, ReadByServer, Reflink, Revoke, Unmap, unpack_name};
use peerfs_abi::{ABI_VERSION, names, socket as message};
use peerfs_sys::{Window, receive_with_fd};
use zerocopy::{FromZeros, IntoBytes};

use crate::PinKind;
use crate::backend::{FileCalls, NO_WAY, SessionCalls};

/// Most events taken from the session with one read(2).
const EVENTS_PER_READ: usize = 1024;

/// A file's own handle. The server gives a handle opened with both flags no page cache.
pub(crate) struct KernelFile(File);

impl KernelFile {
    pub(crate) fn open(path: &Path, options: &OpenOptions) -> io::Result<KernelFile> {
        let direct = (OFlag::O_DIRECT | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).bits();
        let plain = (OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).bits();
        match options.clone().custom_flags(direct).open(path) {
            // Directories and special files know no direct access, yet can be asked why they do not map.
            Err(error) if error.raw_os_error() == Some(Errno::EINVAL as i32) => options.clone().custom_flags(plain).open(path),
            other => other,
        }
        .map(KernelFile)
    }

    fn decide(&self, command: u32, argument: &mut Map) -> io::Result<()> {
        argument.file_fd = self.0.as_raw_fd();
        peerfs_sys::ioctl(&self.0, command, argument).map(drop)
    }
}

impl FileCalls for KernelFile {
    fn query(&self, argument: &mut Map) -> io::Result<()> {
        self.decide(ioctl::QUERY, argument)
    }

    fn map(&self, argument: &mut Map) -> io::Result<()> {
        self.decide(ioctl::MAP, argument)
    }

    fn revoke(&self, argument: &mut Revoke) -> io::Result<()> {
        peerfs_sys::ioctl(&self.0, ioctl::REVOKE, argument).map(drop)
    }

    fn read_by_server(&self, argument: &mut ReadByServer) -> io::Result<()> {
        argument.file_fd = self.0.as_raw_fd();
        peerfs_sys::ioctl(&self.0, ioctl::READ_BY_SERVER, argument).map(drop)
    }

    fn copy(&self, argument: &mut DeviceCopy) -> io::Result<()> {
        argument.file_fd = self.0.as_raw_fd();
        peerfs_sys::ioctl(&self.0, ioctl::COPY, argument).map(drop)
    }

    fn reflink(&self, argument: &mut Reflink) -> io::Result<()> {
        peerfs_sys::ioctl(&self.0, ioctl::REFLINK, argument).map(drop)
    }

    fn info(&self, argument: &mut Info) -> io::Result<()> {
        peerfs_sys::ioctl(&self.0, ioctl::INFO, argument).map(drop)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, offset: u64, target: &mut [u8]) -> io::Result<usize> {
        self.0.read_at(target, offset)
    }

    fn write_at(&self, offset: u64, source: &[u8]) -> io::Result<usize> {
        self.0.write_at(source, offset)
    }
}

/// How grants become descriptors.
struct Transport {
    passthrough: bool,
    /// Always there without passthrough; with it, for dma-bufs.
    socket: Option<UnixAddr>,
    /// Who mounted it.
    owner: u32,
}

/// A session file and the directory it is in.
pub(crate) struct KernelSession {
    control: OwnedFd,
    session: File,
    wake: EventFd,
    transport: OnceLock<Transport>,
}

impl KernelSession {
    /// `directory` is any directory of the mount.
    pub(crate) fn open(directory: &Path) -> io::Result<KernelSession> {
        // A file of the control directory is in that directory itself.
        let path = match directory.ends_with(names::CONTROL_DIR) {
            true => directory.to_owned(),
            false => directory.join(names::CONTROL_DIR),
        };
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let control = nix::fcntl::open(&path, flags, Mode::empty())?;
        let open = |access| openat(&control, names::SESSION, access | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC, Mode::empty());
        // On a read-only mount the kernel lets nothing be opened for writing, sessions included.
        let session = open(OFlag::O_RDWR).or_else(|error| match error {
            Errno::EROFS => open(OFlag::O_RDONLY),
            error => Err(error),
        })?;
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(KernelSession {
            control,
            session: File::from(session),
            wake: EventFd::from_value_and_flags(0, flags)?,
            transport: OnceLock::new(),
        })
    }

    fn grant(&self, grant_id: u64, writable: bool) -> io::Result<OwnedFd> {
        let transport = self.transport.get().ok_or(Errno::EBADF)?;
        if !transport.passthrough {
            return transport.ask(grant_id);
        }
        let access = match writable {
            true => OFlag::O_RDWR,
            false => OFlag::O_RDONLY,
        };
        let name = names::grant_name(grant_id);
        Ok(openat(&self.control, name.as_str(), access | OFlag::O_CLOEXEC, Mode::empty())?)
    }
}

impl Transport {
    fn ask(&self, grant_id: u64) -> io::Result<OwnedFd> {
        ask_for_grant(self.socket.as_ref().ok_or(Errno::EPROTO)?, self.owner, grant_id)
    }
}

impl SessionCalls for KernelSession {
    fn bind(&self, argument: &mut Context) -> io::Result<()> {
        // Kept open during the call only: the server takes a duplicate. Where there is no procfs, or it is shut for a process
        // that may not be traced, a server that is privileged does without.
        let memory = File::open("/proc/self/mem").ok();
        argument.mem_fd = memory.as_ref().map_or(-1, AsRawFd::as_raw_fd);
        peerfs_sys::ioctl(&self.session, ioctl::CONTEXT, argument)?;
        let transport = transport(argument, self.session.metadata()?.uid())?;
        self.transport.get_or_init(|| transport);
        Ok(())
    }

    fn window(&self, grant_id: u64, length: u64, writable: bool) -> io::Result<Window> {
        let length = usize::try_from(length).map_err(|_| Errno::ENOMEM)?;
        Window::map(self.grant(grant_id, writable)?, length, writable)
    }

    fn device(&self) -> io::Result<u64> {
        Ok(peerfs_sys::identity(self.control.as_fd())?.0)
    }

    fn pinned(&self, grant_id: u64, kind: PinKind, writable: bool) -> io::Result<OwnedFd> {
        match kind {
            PinKind::Memfd => self.grant(grant_id, writable),
            PinKind::Dmabuf => self.transport.get().ok_or(Errno::EBADF)?.ask(grant_id),
        }
    }

    fn wait(&self, timeout: Option<Duration>) -> io::Result<()> {
        let mut fds = [PollFd::new(self.session.as_fd(), PollFlags::POLLIN), PollFd::new(self.wake.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, poll_timeout(timeout)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let seen = fds[0].revents().unwrap_or(PollFlags::empty());
        // An error without events is how a FUSE file says that its server is gone.
        if seen.contains(PollFlags::POLLERR) && !seen.contains(PollFlags::POLLIN) {
            return Err(Errno::ENOTCONN.into());
        }
        match self.wake.read() {
            Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn wake(&self) {
        // It fails only when the counter is full, and then the waiter is awake anyway.
        let _ = self.wake.write(1);
    }

    fn events(&self, events: &mut Vec<Event>) -> io::Result<()> {
        loop {
            let mut batch = [Event::new_zeroed(); EVENTS_PER_READ];
            let count = match (&self.session).read(batch.as_mut_bytes()) {
                Ok(bytes) => bytes / size_of::<Event>(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            events.extend_from_slice(&batch[..count]);
            if count < EVENTS_PER_READ {
                return Ok(());
            }
        }
    }

    fn acknowledge(&self, grant_ids: &[u64]) -> io::Result<()> {
        for grants in grant_ids.chunks(ioctl::ACKS_MAX) {
            let mut argument = Ack { abi_version: ABI_VERSION, count: grants.len() as u32, grant_ids: [0; ioctl::ACKS_MAX] };
            argument.grant_ids[..grants.len()].copy_from_slice(grants);
            peerfs_sys::ioctl(&self.session, ioctl::ACK, &mut argument)?;
        }
        Ok(())
    }

    fn unmap(&self, argument: &mut Unmap) -> io::Result<()> {
        peerfs_sys::ioctl(&self.session, ioctl::UNMAP, argument).map(drop)
    }

    fn device_memory(&self, argument: &mut DeviceMemory) -> io::Result<()> {
        peerfs_sys::ioctl(&self.session, devmem::DEVICE_MEMORY, argument).map(drop)
    }

    fn device_memory_file(&self, id: u64, writable: bool) -> io::Result<Arc<dyn FileCalls>> {
        let name = devmem::device_memory_name(id);
        let access = if writable { OFlag::O_RDWR } else { OFlag::O_RDONLY };
        let flags = access | OFlag::O_DIRECT | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = openat(&self.control, name.as_str(), flags, Mode::empty())?;
        Ok(Arc::new(KernelFile(File::from(file))))
    }
}

fn transport(context: &Context, owner: u32) -> io::Result<Transport> {
    let path = unpack_name(&context.socket_path).ok_or(Errno::EPROTO)?;
    let socket = if path.is_empty() { None } else { Some(UnixAddr::new(path)?) };
    match context.transport {
        ioctl::transport::PASSTHROUGH => Ok(Transport { passthrough: true, socket, owner }),
        ioctl::transport::SOCKET if socket.is_some() => Ok(Transport { passthrough: false, socket, owner }),
        _ => Err(Errno::EPROTO.into()),
    }
}

/// Rounded up, so that a wait for a deadline does not end just before it.
fn poll_timeout(timeout: Option<Duration>) -> PollTimeout {
    let Some(timeout) = timeout else {
        return PollTimeout::NONE;
    };
    let milliseconds = timeout.as_micros().div_ceil(1000);
    PollTimeout::try_from(milliseconds).unwrap_or(PollTimeout::MAX)
}

/// A connection for each request: the kernel attaches the credentials of the sender, which a server checks. In a container
/// somebody else may listen at that place: only the mount's `owner` is asked.
fn ask_for_grant(address: &UnixAddr, owner: u32, grant_id: u64) -> io::Result<OwnedFd> {
    let connection = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
    connect(connection.as_raw_fd(), address).map_err(|error| match error {
        Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES | Errno::EPERM | Errno::ECONNREFUSED => NO_WAY,
        other => other,
    })?;
    if getsockopt(&connection, PeerCredentials)?.uid() != owner {
        return Err(NO_WAY.into());
    }
    let request = message::Request { magic: message::MAGIC, abi_version: ABI_VERSION, grant_id };
    let raw = connection.as_raw_fd();
    send(raw, request.as_bytes(), MsgFlags::MSG_NOSIGNAL)?;
    let mut reply = message::Reply::new_zeroed();
    let (bytes, fd) = receive_with_fd(&connection, reply.as_mut_bytes())?;
    if bytes != size_of::<message::Reply>() || reply.magic != message::MAGIC || reply.grant_id != grant_id {
        return Err(Errno::EPROTO.into());
    }
    match reply.error {
        0 => fd.ok_or_else(|| Errno::EPROTO.into()),
        error => Err(io::Error::from_raw_os_error(error.cast_signed())),
    }
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;
    use std::thread;

    use nix::sys::memfd::{MFdFlags, memfd_create};
    use nix::sys::socket::{Backlog, ControlMessage, accept, bind, listen, recv, sendmsg};

    use super::*;

    /// Answers one request on a fresh socket with `reply`, and asks for `grant_id` there.
    fn exchange(grant_id: u64, reply: message::Reply) -> io::Result<OwnedFd> {
        let folder = tempfile::tempdir()?;
        let address = UnixAddr::new(&folder.path().join("grants"))?;
        let kind = SockType::SeqPacket;
        let listener = socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None)?;
        bind(listener.as_raw_fd(), &address)?;
        listen(&listener, Backlog::new(1)?)?;
        let memory = File::from(memfd_create(c"grant", MFdFlags::MFD_CLOEXEC)?);
        memory.set_len(4096)?;
        memory.write_at(b"passed", 0)?;
        thread::scope(|scope| {
            let server = scope.spawn(move || -> nix::Result<message::Request> {
                let client = accept(listener.as_raw_fd())?;
                let mut request = message::Request::new_zeroed();
                recv(client, request.as_mut_bytes(), MsgFlags::empty())?;
                let fds = [memory.as_raw_fd()];
                let control = match reply.error {
                    0 => vec![ControlMessage::ScmRights(&fds)],
                    _ => Vec::new(),
                };
                let bytes = [IoSlice::new(reply.as_bytes())];
                sendmsg::<()>(client, &bytes, &control, MsgFlags::empty(), None)?;
                nix::unistd::close(client)?;
                Ok(request)
            });
            let answer = ask_for_grant(&address, nix::unistd::geteuid().as_raw(), grant_id);
            let request = server.join().expect("no panic").expect("server");
            assert_eq!((request.magic, request.grant_id), (message::MAGIC, grant_id));
            answer
        })
    }

    fn reply(magic: u32, error: u32, grant_id: u64) -> message::Reply {
        message::Reply { magic, error, grant_id }
    }

    #[test]
    fn grants_come_over_the_socket() {
        let fd = exchange(5, reply(message::MAGIC, 0, 5)).expect("grant");
        let window = Window::map(fd, 4096, false).expect("map");
        let mut bytes = [0; 6];
        window.read(0, &mut bytes).expect("read");
        assert_eq!(&bytes, b"passed");
        let code = |answer: io::Result<OwnedFd>| answer.err().and_then(|error| error.raw_os_error());
        let stale = Errno::ESTALE as u32;
        assert_eq!(code(exchange(5, reply(message::MAGIC, stale, 5))), Some(Errno::ESTALE as i32));
        assert_eq!(code(exchange(5, reply(message::MAGIC, 0, 6))), Some(Errno::EPROTO as i32));
        assert_eq!(code(exchange(5, reply(1, 0, 5))), Some(Errno::EPROTO as i32));
    }

    #[test]
    fn a_socket_that_is_not_there_is_told_from_one_that_refuses() {
        let folder = tempfile::tempdir().expect("a directory");
        let address = UnixAddr::new(&folder.path().join("hidden")).expect("short");
        let owner = nix::unistd::geteuid().as_raw();
        assert_eq!(ask_for_grant(&address, owner, 1).expect_err("nobody listens").raw_os_error(), Some(NO_WAY as i32));
    }

    #[test]
    fn only_the_owner_of_the_mount_is_asked() {
        let folder = tempfile::tempdir().expect("a directory");
        let address = UnixAddr::new(&folder.path().join("squatted")).expect("short");
        let listener = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
        bind(listener.as_raw_fd(), &address).expect("bound");
        listen(&listener, Backlog::new(1).expect("one")).expect("listening");
        let other = nix::unistd::geteuid().as_raw() + 1;
        assert_eq!(ask_for_grant(&address, other, 1).expect_err("somebody else").raw_os_error(), Some(NO_WAY as i32));
    }
}
