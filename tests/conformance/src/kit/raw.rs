//! The ABI without the client library: what a hostile program would use. It hears of
//! revocations and never acknowledges one unless told to.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{OFlag, openat};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, send, socket};
use nix::sys::stat::Mode;
use peerfs_abi::ioctl::{self, Ack, Context, Event, Map, Segment, Unmap, transport, unpack_name};
use peerfs_abi::{ABI_VERSION, ImporterFlags, MapFlags, Reason, names, socket as message};
use peerfs_sys::Window;
use zerocopy::{FromZeros, IntoBytes};

/// Tries before a busy range counts as refused.
const TRIES: u32 = 100;

/// A session by hand.
pub struct RawSession {
    control: OwnedFd,
    /// The session file.
    pub session: File,
    /// What the server answered.
    pub context: Context,
}

impl RawSession {
    /// Opens a session in a directory of a mount and binds it to an importer that can do everything.
    ///
    /// # Errors
    /// What the calls answer.
    pub fn open(directory: &Path) -> io::Result<RawSession> {
        RawSession::open_as(directory, fresh_context())
    }

    /// As [`RawSession::open`], for this importer; its `mem_fd` is filled in.
    ///
    /// # Errors
    /// What the calls answer.
    pub fn open_as(directory: &Path, mut context: Context) -> io::Result<RawSession> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let control = nix::fcntl::open(&directory.join(names::CONTROL_DIR), flags, Mode::empty())?;
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let session = File::from(openat(&control, names::SESSION, flags, Mode::empty())?);
        let memory = File::open("/proc/self/mem")?;
        context.mem_fd = memory.as_raw_fd();
        peerfs_sys::ioctl(&session, ioctl::CONTEXT, &mut context)?;
        Ok(RawSession { control, session, context })
    }

    /// Maps a range of a file.
    ///
    /// # Errors
    /// What the ioctl answers.
    pub fn map(&self, file: &File, offset: u64, length: u64, flags: MapFlags) -> io::Result<Box<Map>> {
        let mut argument = request(file, offset, length, flags);
        argument.context_id = self.context.context_id;
        peerfs_sys::ioctl(file, ioctl::MAP, &mut *argument)?;
        Ok(argument)
    }

    /// Maps a range that is expected to be direct; tries again, as told, while it is busy: the last release of
    /// a handle, or a read of another process, may still be under way.
    ///
    /// # Errors
    /// What the ioctl answers.
    pub fn map_calmly(&self, file: &File, offset: u64, length: u64, flags: MapFlags) -> io::Result<Box<Map>> {
        for _ in 0..TRIES {
            let answer = self.map(file, offset, length, flags)?;
            if segments(&answer).iter().all(|segment| segment.reason != Reason::Busy.code()) {
                return Ok(answer);
            }
            // What it did map is not used: it would be in the way of the next try.
            self.unmap(answer.mapping_id)?;
            thread::sleep(Duration::from_millis(answer.retry_after_ms.max(1).into()));
        }
        self.map(file, offset, length, flags)
    }

    /// Ends a mapping.
    ///
    /// # Errors
    /// What the ioctl answers.
    pub fn unmap(&self, mapping_id: u64) -> io::Result<()> {
        let mut argument = Unmap { abi_version: ABI_VERSION, mapping_id, ..Unmap::new_zeroed() };
        peerfs_sys::ioctl(&self.session, ioctl::UNMAP, &mut argument).map(drop)
    }

    /// Tells the server that a grant is no longer used.
    ///
    /// # Errors
    /// What the ioctl answers.
    pub fn acknowledge(&self, grant_id: u64) -> io::Result<()> {
        let mut argument = Ack { abi_version: ABI_VERSION, count: 1, grant_ids: [0; ioctl::ACKS_MAX] };
        argument.grant_ids[0] = grant_id;
        peerfs_sys::ioctl(&self.session, ioctl::ACK, &mut argument).map(drop)
    }

    /// The next revocation; `None` when none comes within `patience`.
    ///
    /// # Errors
    /// What poll(2) and read(2) answer.
    pub fn event(&self, patience: Duration) -> io::Result<Option<Event>> {
        let end = Instant::now() + patience;
        loop {
            let mut event = Event::new_zeroed();
            match (&self.session).read(event.as_mut_bytes()) {
                Ok(_) => return Ok(Some(event)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            let left = end.saturating_duration_since(Instant::now()).as_millis();
            if left == 0 {
                return Ok(None);
            }
            let mut fds = [PollFd::new(self.session.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX))?;
        }
    }

    /// The session's page of sequence numbers, mmapped.
    ///
    /// # Errors
    /// What taking and mmapping it answers.
    pub fn sequences(&self) -> io::Result<Window> {
        let fd = self.take(self.context.sequence_grant_id, false)?;
        Window::map(fd, self.context.sequence_bytes as usize, false)
    }

    /// Takes the descriptor of a grant, the way this mount hands them out.
    ///
    /// # Errors
    /// What open(2) or the socket answers.
    pub fn take(&self, grant_id: u64, writable: bool) -> io::Result<OwnedFd> {
        match self.context.transport {
            transport::SOCKET => ask_socket(&self.context, grant_id),
            _ => {
                let access = if writable { OFlag::O_RDWR } else { OFlag::O_RDONLY };
                Ok(openat(&self.control, names::grant_name(grant_id).as_str(), access | OFlag::O_CLOEXEC, Mode::empty())?)
            }
        }
    }
}

/// A valid argument of `CONTEXT`, but for the descriptor of the memory.
pub fn fresh_context() -> Context {
    let mut context = Context::new_zeroed();
    context.abi_version = ABI_VERSION;
    context.importer_flags = ImporterFlags::all().bits();
    (context.dma_bits, context.va_bits, context.page_bytes) = (64, 48, 4096);
    context.mem_fd = -1;
    context
}

/// A valid argument of `MAP` and `QUERY`, but for the context.
pub fn request(file: &File, offset: u64, length: u64, flags: MapFlags) -> Box<Map> {
    let mut argument = Box::new(Map::new_zeroed());
    argument.abi_version = ABI_VERSION;
    argument.flags = flags.bits();
    (argument.offset, argument.length) = (offset, length);
    argument.file_fd = file.as_raw_fd();
    argument
}

/// The segments of an answer.
pub fn segments(answer: &Map) -> &[Segment] {
    let count = (answer.segment_count as usize).min(answer.segments.len());
    &answer.segments[..count]
}

/// The segments of an answer that are direct.
pub fn direct_segments(answer: &Map) -> impl Iterator<Item = &Segment> {
    segments(answer).iter().filter(|segment| segment.grant_id != 0)
}

/// A handle that keeps a file out of the page cache, as the client library's is.
///
/// # Errors
/// What open(2) answers.
pub fn open_direct(path: &Path, writable: bool) -> io::Result<File> {
    let flags = OFlag::O_DIRECT | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    OpenOptions::new().read(true).write(writable).custom_flags(flags.bits()).open(path)
}

/// A connection to the grant socket of a session.
///
/// # Errors
/// What socket(2) and connect(2) answer.
pub fn dial(context: &Context) -> io::Result<OwnedFd> {
    let path = unpack_name(&context.socket_path).filter(|path| !path.is_empty()).ok_or(io::ErrorKind::NotFound)?;
    let connection = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
    connect(connection.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(connection)
}

fn ask_socket(context: &Context, grant_id: u64) -> io::Result<OwnedFd> {
    let connection = dial(context)?;
    let request = message::Request { magic: message::MAGIC, abi_version: ABI_VERSION, grant_id };
    send(connection.as_raw_fd(), request.as_bytes(), MsgFlags::MSG_NOSIGNAL)?;
    let mut reply = message::Reply::new_zeroed();
    let (bytes, fd) = peerfs_sys::receive_with_fd(&connection, reply.as_mut_bytes())?;
    if bytes != size_of::<message::Reply>() || reply.error != 0 {
        return Err(io::Error::from_raw_os_error(reply.error.cast_signed()));
    }
    fd.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Pages of a window that can be read.
pub fn readable(window: &Window) -> usize {
    let mut page = [0; 4096];
    (0..window.length() / page.len()).filter(|number| window.read(number * page.len(), &mut page).is_ok()).count()
}
