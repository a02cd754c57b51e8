//! The guardian process itself.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};

use super::protocol::{Kind, Message, receive, send};

/// What is done when the server is gone. Dropped field by field in this order: the lock goes last.
#[derive(Default)]
struct Kept {
    pages: HashMap<u64, File>,
    windows: HashMap<u64, File>,
    lock: Option<OwnedFd>,
}

/// Serves as the guardian until the other end of `socket` is closed, then ends every window it holds.
///
/// # Errors
/// What reading the socket answers; the windows are ended in that case too.
pub fn run(socket: OwnedFd) -> io::Result<()> {
    detach();
    let mut kept = Kept::default();
    let result = serve(&socket, &mut kept);
    kept.end();
    result
}

/// Signals to the server's process group (a terminal's ctrl-C, a service manager's stop) must not end the guardian
/// before the server. Every step is a precaution, so failures are not errors.
fn detach() {
    let _ = nix::unistd::setsid();
    let signals = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGPIPE];
    let _ = signals.into_iter().collect::<SigSet>().thread_block();
    let _ = std::env::set_current_dir("/");
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

fn serve(socket: &OwnedFd, kept: &mut Kept) -> io::Result<()> {
    loop {
        let answer = match receive(socket) {
            Ok(None) => return Ok(()),
            // The server died with messages of ours unread.
            Err(err) if err.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
            Err(err) if err.kind() == io::ErrorKind::InvalidData => Some((Kind::Refused, 0)),
            Err(err) => return Err(err),
            Ok(Some(message)) => kept.handle(message),
        };
        if let Some((kind, id)) = answer
            && send(socket, kind, id, None).is_err()
        {
            return Ok(());
        }
    }
}

impl Kept {
    fn handle(&mut self, message: Message) -> Option<(Kind, u64)> {
        let id = message.id;
        let done = Some((Kind::Done, id));
        match (message.kind, message.fd) {
            (Kind::Hold, Some(fd)) => {
                self.windows.insert(id, fd.into());
                done
            }
            (Kind::HoldSequence, Some(fd)) => {
                self.pages.insert(id, fd.into());
                done
            }
            (Kind::Lock, Some(fd)) => {
                self.lock = Some(fd);
                done
            }
            (Kind::Ping, None) => done,
            (Kind::Release, _) => {
                self.windows.remove(&id);
                None
            }
            (Kind::ReleaseSequence, _) => {
                self.pages.remove(&id);
                None
            }
            _ => Some((Kind::Refused, id)),
        }
    }

    /// Clients look at slot 0 before they touch memory: so the pages come first.
    fn end(self) {
        for page in self.pages.values() {
            let _ = page.write_all_at(&1u64.to_ne_bytes(), 0);
        }
        let uncut = self.windows.values().filter(|window| window.set_len(0).is_err()).count();
        if uncut > 0 {
            // Nobody can seal a window against this; should the kernel refuse all the same, keeping the lock (by
            // not exiting) is the only way left to prevent a second authority.
            loop {
                std::thread::park();
            }
        }
        drop(self.windows);
        drop(self.lock);
    }
}
