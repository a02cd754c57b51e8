//! The server's side of the guardian.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use peerfs_sys::ProcessHandle;

use super::protocol::{Kind, receive, send};
use crate::custody::Custody;
use crate::sync::{Condvar, Mutex, lock};

/// A guardian that does not answer for this long is replaced.
const ANSWER_SECONDS: u32 = 5;
/// Pause before another attempt to start one.
const RESTART_PAUSE: Duration = Duration::from_millis(100);

/// A running guardian, restarted when it dies. Dropping it lets the guardian end what it still holds and waits for it.
#[derive(Debug)]
pub struct Guardian {
    shared: Arc<Shared>,
    monitor: Option<JoinHandle<()>>,
}

struct Shared {
    command: Box<dyn Fn() -> Command + Send + Sync>,
    state: Mutex<State>,
    stopped: Condvar,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("guardian")
    }
}

/// All that a new guardian has to be told, and the channel to the present one.
#[derive(Default)]
struct State {
    windows: HashMap<u64, OwnedFd>,
    pages: HashMap<u64, OwnedFd>,
    lock: Option<OwnedFd>,
    channel: Option<Channel>,
    stopping: bool,
}

struct Channel {
    socket: OwnedFd,
    pid: Pid,
}

impl Guardian {
    /// Starts `exe guardian` with the channel as its standard input. `lock` is held until after the last window is
    /// ended, should this process die.
    ///
    /// # Errors
    /// It could not be started, or did not answer.
    pub fn spawn(exe: &Path, lock: Option<OwnedFd>) -> io::Result<Guardian> {
        let exe = exe.to_owned();
        let command = move || {
            let mut command = Command::new(&exe);
            command.arg("guardian");
            command
        };
        Guardian::spawn_command(command, lock)
    }

    /// As [`Guardian::spawn`], with any command that calls [`super::run`] on its standard input.
    ///
    /// # Errors
    /// It could not be started, or did not answer.
    pub fn spawn_command(
        command: impl Fn() -> Command + Send + Sync + 'static,
        lock_fd: Option<OwnedFd>,
    ) -> io::Result<Guardian> {
        let shared = Arc::new(Shared { command: Box::new(command), state: Mutex::default(), stopped: Condvar::new() });
        let child = {
            let mut state = lock(&shared.state);
            state.lock = lock_fd;
            shared.start(&mut state)?
        };
        let monitored = shared.clone();
        let monitor = thread::Builder::new().name("peerfs-guardian".into()).spawn(move || monitored.keep_alive(child))?;
        Ok(Guardian { shared, monitor: Some(monitor) })
    }

    /// Process id of the present guardian; `None` while it is being restarted.
    pub fn pid(&self) -> Option<u32> {
        lock(&self.shared.state).channel.as_ref().map(|channel| channel.pid.as_raw() as u32)
    }

    /// Asks it for a sign of life.
    ///
    /// # Errors
    /// It is being restarted, or did not answer (and will be restarted).
    pub fn ping(&self) -> io::Result<()> {
        lock(&self.shared.state).ask(Kind::Ping, 0, None)
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        let hung = {
            let mut state = lock(&self.shared.state);
            state.stopping = true;
            state.lock = None;
            // One that holds no window any more may be given up, should it not end.
            let expendable = state.windows.is_empty();
            // Opened before the channel is closed: the number is still its own.
            let process = state.channel.take().and_then(|channel| ProcessHandle::open(channel.pid.as_raw() as u32).ok());
            process.filter(|_| expendable)
        };
        self.shared.stopped.notify_all();
        if let Some(process) = hung
            && matches!(process.wait_exit(Duration::from_secs(ANSWER_SECONDS.into())), Ok(false))
        {
            tracing::warn!("the guardian holds nothing and does not end; it is killed");
            // A failure means that it has ended after all.
            let _ = process.kill();
        }
        if let Some(monitor) = self.monitor.take() {
            // It can only have panicked, which was reported.
            let _ = monitor.join();
        }
    }
}

impl Custody for Guardian {
    fn hold(&self, id: u64, window: OwnedFd) -> io::Result<()> {
        let mut state = lock(&self.shared.state);
        state.ask(Kind::Hold, id, Some(&window))?;
        state.windows.insert(id, window);
        Ok(())
    }

    fn release(&self, id: u64) {
        let mut state = lock(&self.shared.state);
        state.windows.remove(&id);
        state.tell(Kind::Release, id);
    }

    fn hold_sequence(&self, id: u64, page: OwnedFd) -> io::Result<()> {
        let mut state = lock(&self.shared.state);
        state.ask(Kind::HoldSequence, id, Some(&page))?;
        state.pages.insert(id, page);
        Ok(())
    }

    fn release_sequence(&self, id: u64) {
        let mut state = lock(&self.shared.state);
        state.pages.remove(&id);
        state.tell(Kind::ReleaseSequence, id);
    }
}

impl State {
    /// Sends a message and waits for the answer. A guardian that fails is killed before the channel is closed: one
    /// that woke up later would take the closed channel for our death and end live windows.
    fn ask(&mut self, kind: Kind, id: u64, fd: Option<&OwnedFd>) -> io::Result<()> {
        let Some(channel) = &self.channel else {
            return Err(io::Error::other("the guardian is being restarted"));
        };
        let result = channel.ask(kind, id, fd);
        if result.as_ref().is_err_and(|err| err.kind() != io::ErrorKind::PermissionDenied) {
            self.abandon();
        }
        result
    }

    fn tell(&mut self, kind: Kind, id: u64) {
        if let Some(channel) = &self.channel
            && send(&channel.socket, kind, id, None).is_err()
        {
            self.abandon();
        }
    }

    fn abandon(&mut self) {
        if let Some(channel) = self.channel.take() {
            // It was not reaped yet (the monitor takes the channel away first), so the id is still its own.
            let _ = kill(channel.pid, Signal::SIGKILL);
        }
    }
}

impl Channel {
    /// `PermissionDenied`: the guardian is well but refuses (it has no descriptor left).
    fn ask(&self, kind: Kind, id: u64, fd: Option<&OwnedFd>) -> io::Result<()> {
        send(&self.socket, kind, id, fd.map(|fd| fd.as_fd()))?;
        match receive(&self.socket)? {
            Some(answer) if answer.kind == Kind::Done && answer.id == id => Ok(()),
            Some(answer) if answer.kind == Kind::Refused => Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "the guardian cannot hold more descriptors; raise its limit (ulimit -n)",
            )),
            Some(_) | None => Err(io::Error::other("the guardian died or answered out of turn")),
        }
    }
}

impl Shared {
    /// Starts a guardian and tells it all that the last one knew.
    fn start(&self, state: &mut State) -> io::Result<Child> {
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        setsockopt(&ours, sockopt::ReceiveTimeout, &TimeVal::seconds(ANSWER_SECONDS.into()))?;
        setsockopt(&ours, sockopt::SendTimeout, &TimeVal::seconds(ANSWER_SECONDS.into()))?;
        let mut command = (self.command)();
        command.stdin(Stdio::from(theirs)).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn()?;
        // The command keeps its copy of the guardian's end; while it lives we would not see the guardian die.
        drop(command);
        let channel = Channel { socket: ours, pid: Pid::from_raw(child.id() as i32) };
        if let Err(err) = introduce(&channel, state) {
            let _ = child.kill();
            let _ = child.wait();
            return Err(io::Error::new(err.kind(), format!("starting the guardian: {err}")));
        }
        state.channel = Some(channel);
        Ok(child)
    }

    /// Waits for the guardian's death, and replaces it unless we are stopping.
    fn keep_alive(&self, child: Child) {
        let mut child = Some(child);
        loop {
            if let Some(mut dead) = child.take() {
                self.await_death(&mut dead);
            }
            let mut state = lock(&self.state);
            if state.stopping {
                return;
            }
            match self.start(&mut state) {
                Ok(started) => {
                    tracing::warn!("the guardian died; a new one holds {} windows", state.windows.len());
                    child = Some(started);
                }
                Err(err) => {
                    tracing::error!("{err}; no memory is granted until one runs");
                    drop(
                        self.stopped
                            .wait_timeout_while(state, RESTART_PAUSE, |state| !state.stopping)
                            .unwrap_or_else(PoisonError::into_inner),
                    );
                }
            }
        }
    }

    fn await_death(&self, child: &mut Child) {
        let pid = Pid::from_raw(child.id() as i32);
        while waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(nix::errno::Errno::EINTR) {}
        lock(&self.state).channel = None;
        let _ = child.wait();
    }
}

fn introduce(channel: &Channel, state: &State) -> io::Result<()> {
    channel.ask(Kind::Ping, 0, None)?;
    if let Some(lock) = &state.lock {
        channel.ask(Kind::Lock, 0, Some(lock))?;
    }
    for (id, page) in &state.pages {
        channel.ask(Kind::HoldSequence, *id, Some(page))?;
    }
    for (id, window) in &state.windows {
        channel.ask(Kind::Hold, *id, Some(window))?;
    }
    Ok(())
}
