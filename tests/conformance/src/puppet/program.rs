//! The side of the puppet.

use std::fs::File;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use peerfs_abi::devmem::{DEVICE_MEMORY, DeviceMemory, device_memory_call};
use peerfs_abi::ioctl::{self, Map, Revoke};
use peerfs_abi::{ABI_VERSION, MapFlags, Trigger};
use peerfs_sys::{Kinship, ParkedSibling, Window, run_in_child};
use zerocopy::FromZeros;

use super::SUBCOMMAND;
use crate::kit::attempts::{AFTER, DURING, DURING_READ, Loot};
use crate::kit::raw::{RawSession, direct_segments, fresh_context, open_direct, request, segments};
use crate::kit::worker::{PATIENCE, die_with_parent, hear, say};

/// What a child's exit status says when its call failed altogether.
const FAILED: u8 = u8::MAX;

#[derive(Default)]
struct State {
    path: PathBuf,
    file: Option<File>,
    writable: bool,
    session: Option<RawSession>,
    /// A session, or memory, that somebody passed.
    given: Option<File>,
    /// What maps are made for.
    context: u64,
    answer: Option<Box<Map>>,
    windows: Vec<Window>,
    loot: Option<Loot>,
}

pub(super) fn serve() -> Result<()> {
    obey_all(State::default())
}

/// After exec, with the file that the program before had open.
pub(super) fn resume(file: i32, context: u64) -> Result<()> {
    let file = File::from(peerfs_sys::duplicate_descriptor(std::process::id(), file)?);
    obey_all(State { file: Some(file), context, ..State::default() })
}

fn obey_all(mut state: State) -> Result<()> {
    die_with_parent()?;
    say("ok")?;
    loop {
        let line = hear()?;
        if line == "quit" {
            return Ok(());
        }
        match state.obey(&line) {
            Ok(answer) => say(format!("ok {answer}").trim_end())?,
            Err(error) => say(refusal(&error))?,
        }
    }
}

fn refusal(error: &anyhow::Error) -> String {
    let errno = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>()).and_then(io::Error::raw_os_error);
    match errno {
        Some(errno) => format!("errno {errno}"),
        None => format!("no {error:#}").replace('\n', " "),
    }
}

impl State {
    fn obey(&mut self, line: &str) -> Result<String> {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["open", access, path] => self.open(access == "write", path.as_ref()),
            ["session", directory] => self.bind_new(directory.as_ref()),
            ["bind"] => self.bind_given(),
            ["use", context] => self.use_context(context.parse()?),
            ["context"] => Ok(self.context.to_string()),
            ["pid"] => Ok(std::process::id().to_string()),
            ["map", offset, length, flags] => self.map(offset.parse()?, length.parse()?, flags.parse()?),
            ["add", mapping] => self.add(mapping.parse()?),
            ["unmap", mapping] => self.unmap(mapping),
            ["take"] => self.take(),
            ["steal", access, grant] => {
                self.session()?.take(grant.parse()?, access == "write").map(|_| String::new()).map_err(Into::into)
            }
            ["event"] => self.event(),
            ["ack", grant] => self.session()?.acknowledge(grant.parse()?).map(|()| String::new()).map_err(Into::into),
            ["thread", offset, length] => self.map_in_thread(offset.parse()?, length.parse()?),
            ["child", kind, offset, length] => self.map_in_child(kinship(kind)?, offset.parse()?, length.parse()?),
            ["child-reads", kind] => self.read_in_child(kinship(kind)?),
            ["reads"] => Ok(first_byte(self.file()?)?.to_string()),
            ["exec"] => self.exec(false),
            ["exec-with-sibling"] => self.exec(true),
            ["pass"] => self.pass(),
            ["receive"] => self.receive(),
            ["revoke", path] => revoke(path.as_ref(), None),
            ["revoke-mapping", number, path] => revoke(path.as_ref(), Some(number.parse()?)),
            ["spin"] => self.spin(),
            ["attack", when] => self.attack(when),
            ["truncate", length] => self.file()?.set_len(length.parse()?).map(|()| String::new()).map_err(Into::into),
            ["fsync"] => self.file()?.sync_all().map(|()| String::new()).map_err(Into::into),
            ["given-loads", length, offset] => self.load_given(length.parse()?, offset.parse()?),
            ["kept-loads", offset] => byte_of(self.windows.first().context("nothing was kept")?, offset.parse()?),
            ["keep-given", length] => self.keep_given(length.parse()?),
            ["allocate", bytes] => self.device_memory(device_memory_call::ALLOCATE, 0, bytes.parse()?),
            ["free", id] => self.device_memory(device_memory_call::FREE, id.parse()?, 0),
            _ => bail!("`{line}` is no command"),
        }
    }

    fn file(&self) -> Result<&File> {
        self.file.as_ref().context("no file is open")
    }

    fn session(&self) -> Result<&RawSession> {
        self.session.as_ref().context("no session is open")
    }

    fn open(&mut self, writable: bool, path: &Path) -> Result<String> {
        self.file = Some(open_direct(path, writable)?);
        self.path = path.to_owned();
        self.writable = writable;
        Ok(String::new())
    }

    fn bind_new(&mut self, directory: &Path) -> Result<String> {
        let session = RawSession::open(directory)?;
        self.context = session.context.context_id;
        self.session = Some(session);
        Ok(String::new())
    }

    fn bind_given(&mut self) -> Result<String> {
        let session = self.given.as_ref().context("nothing was given")?;
        let memory = File::open("/proc/self/mem")?;
        let mut context = fresh_context();
        context.mem_fd = memory.as_raw_fd();
        peerfs_sys::ioctl(session, ioctl::CONTEXT, &mut context)?;
        self.context = context.context_id;
        Ok(String::new())
    }

    fn use_context(&mut self, context: u64) -> Result<String> {
        self.context = context;
        Ok(String::new())
    }

    /// While it is busy it tries again, as told, where it has a session to give the rest back through.
    fn map(&mut self, offset: u64, length: u64, flags: u32) -> Result<String> {
        let flags = MapFlags::from_bits(flags).context("no flags")?;
        let own = self.session.as_ref().filter(|session| session.context.context_id == self.context);
        let answer = match own {
            Some(session) => session.map_calmly(self.file()?, offset, length, flags)?,
            None => map_once(self.file()?, self.context, offset, length, flags)?,
        };
        let words = stretches(&answer);
        self.answer = Some(answer);
        Ok(words)
    }

    fn add(&self, mapping: u64) -> Result<String> {
        let mut argument = request(self.file()?, 0, 4096, MapFlags::empty());
        (argument.context_id, argument.mapping_id) = (self.context, mapping);
        peerfs_sys::ioctl(self.file()?, ioctl::MAP, &mut *argument)?;
        Ok(stretches(&argument))
    }

    fn unmap(&self, mapping: &str) -> Result<String> {
        let number = match mapping {
            "own" => self.answer.as_ref().context("nothing is mapped")?.mapping_id,
            number => number.parse()?,
        };
        self.session()?.unmap(number)?;
        Ok(String::new())
    }

    fn take(&mut self) -> Result<String> {
        let answer = self.answer.as_ref().context("nothing is mapped")?;
        for segment in direct_segments(answer) {
            let fd = self.session()?.take(segment.grant_id, self.writable)?;
            self.windows.push(Window::map(&fd, segment.grant_length as usize, self.writable)?);
        }
        Ok(self.windows.len().to_string())
    }

    fn event(&self) -> Result<String> {
        let event = self.session()?.event(PATIENCE)?.context("no event comes")?;
        let trigger = Trigger::from_code(event.trigger).context("an unknown trigger")?;
        Ok(format!("{trigger} {}", event.grant_id))
    }

    fn map_in_thread(&self, offset: u64, length: u64) -> Result<String> {
        let (file, context) = (self.file()?, self.context);
        let map = || map_once(file, context, offset, length, MapFlags::empty());
        let answer = std::thread::scope(|scope| scope.spawn(map).join()).ok().context("the thread panicked")??;
        Ok(stretches(&answer))
    }

    /// The child's exit status is the reason it is answered, or 0.
    fn map_in_child(&self, kinship: Kinship, offset: u64, length: u64) -> Result<String> {
        let (file, context) = (self.file()?, self.context);
        let code = run_in_child(kinship, || match map_once(file, context, offset, length, MapFlags::empty()) {
            Ok(answer) if answer.segment_count == 1 => answer.segments[0].reason as u8,
            _ => FAILED,
        })?;
        let reason = code.filter(|code| *code != FAILED).context("the child's map fails")?;
        let path = u32::from(reason == 0);
        Ok(format!("{offset}:{length}:{path}:{reason}"))
    }

    fn read_in_child(&self, kinship: Kinship) -> Result<String> {
        let file = self.file()?;
        let byte = run_in_child(kinship, || first_byte(file).unwrap_or(0))?.context("the child died")?;
        Ok(byte.to_string())
    }

    /// Becomes this program anew, with the file and the session still open.
    fn exec(&self, with_sibling: bool) -> Result<String> {
        let keep = |fd: std::os::fd::BorrowedFd<'_>| fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()));
        keep(self.file()?.as_fd())?;
        keep(self.session()?.session.as_fd())?;
        // Not dropped: exec does not come back.
        let _sibling = with_sibling.then(ParkedSibling::start).transpose()?;
        let (file, context) = (self.file()?.as_raw_fd().to_string(), self.context.to_string());
        let mut command = Command::new("/proc/self/exe");
        Err(command.args([SUBCOMMAND, "inherited", &file, &context]).exec().into())
    }

    fn pass(&self) -> Result<String> {
        let fds = [self.session()?.session.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&fds)];
        sendmsg::<()>(io::stdin().as_fd().as_raw_fd(), &[IoSlice::new(b"x")], &rights, MsgFlags::empty(), None)?;
        Ok(String::new())
    }

    fn receive(&mut self) -> Result<String> {
        // The message must not be read as a line, so it is sent only now.
        say("ready")?;
        let (_, fd) = peerfs_sys::receive_with_fd(io::stdin(), &mut [0; 1])?;
        self.given = Some(File::from(fd.context("no descriptor came with the message")?));
        Ok(String::new())
    }

    /// A byte of the memory that was given.
    fn load_given(&self, length: usize, offset: usize) -> Result<String> {
        let window = Window::map(self.given.as_ref().context("nothing was given")?, length, false)?;
        byte_of(&window, offset)
    }

    /// Maps the memory that was given, for reading, and keeps nothing but the mapping.
    fn keep_given(&mut self, length: usize) -> Result<String> {
        let window = Window::map(self.given.take().context("nothing was given")?, length, false)?;
        self.windows.push(window);
        Ok(String::new())
    }

    fn device_memory(&self, call: u32, id: u64, bytes: u64) -> Result<String> {
        let mut argument = DeviceMemory { abi_version: ABI_VERSION, call, id, bytes, mode: 0, migrated: 0 };
        peerfs_sys::ioctl(&self.session()?.session, DEVICE_MEMORY, &mut argument)?;
        Ok(argument.id.to_string())
    }

    /// Loads by address until SIGBUS ends it.
    fn spin(&self) -> Result<String> {
        let window = self.windows.first().context("no window was taken")?;
        say("spinning")?;
        loop {
            for offset in (0..window.length()).step_by(4096) {
                if window.load_volatile(offset).is_err() {
                    bail!("outside the window");
                }
            }
        }
    }

    fn attack(&mut self, when: &str) -> Result<String> {
        if self.loot.is_none() {
            self.loot = Some(self.make_loot()?);
        }
        let loot = self.loot.as_ref().context("just made")?;
        let read_only = if loot.writable { &[][..] } else { DURING_READ };
        let attempts: Vec<_> = match when {
            "during" => DURING.iter().chain(read_only).collect(),
            "after" => AFTER.iter().collect(),
            other => bail!("`{other}` is no time"),
        };
        for (name, attempt) in &attempts {
            attempt(loot).map_err(|what| anyhow::anyhow!("BREACH {name}: {what}"))?;
        }
        Ok(attempts.len().to_string())
    }

    fn make_loot(&mut self) -> Result<Loot> {
        let answer = self.answer.as_ref().context("nothing is mapped")?;
        let segment = *direct_segments(answer).next().context("nothing is direct")?;
        let session = self.session.take().context("no session is open")?;
        let fd = session.take(segment.grant_id, self.writable)?;
        let window = Window::map(&fd, segment.grant_length as usize, self.writable)?;
        let file = self.file()?.try_clone()?;
        Ok(Loot { path: self.path.clone(), file, session, segment, fd, window, writable: self.writable })
    }
}

fn byte_of(window: &Window, offset: usize) -> Result<String> {
    let mut byte = [0];
    window.read(offset, &mut byte).ok().context("the load faults")?;
    Ok(byte[0].to_string())
}

fn kinship(word: &str) -> Result<Kinship> {
    match word {
        "fork" => Ok(Kinship::Fork),
        "vfork" => Ok(Kinship::Vfork),
        "sibling" => Ok(Kinship::Sibling),
        _ => bail!("`{word}` is no kinship"),
    }
}

fn map_once(file: &File, context: u64, offset: u64, length: u64, flags: MapFlags) -> io::Result<Box<Map>> {
    let mut argument = request(file, offset, length, flags);
    argument.context_id = context;
    peerfs_sys::ioctl(file, ioctl::MAP, &mut *argument)?;
    Ok(argument)
}

fn stretches(answer: &Map) -> String {
    let words = segments(answer)
        .iter()
        .map(|segment| format!("{}:{}:{}:{}", segment.file_offset, segment.length, segment.path, segment.reason));
    words.collect::<Vec<_>>().join(" ")
}

fn first_byte(file: &File) -> io::Result<u8> {
    let mut byte = [0];
    file.read_exact_at(&mut byte, 0)?;
    Ok(byte[0])
}

/// All of a file, or one mapping.
fn revoke(path: &Path, mapping: Option<u64>) -> Result<String> {
    let file = open_direct(path, false)?;
    let mut argument = Revoke::new_zeroed();
    if let Some(number) = mapping {
        argument.flags = ioctl::revoke_flags::MAPPING;
        argument.mapping_id = number;
    }
    argument.abi_version = ABI_VERSION;
    peerfs_sys::ioctl(&file, ioctl::REVOKE, &mut argument)?;
    Ok(argument.revoked.to_string())
}
