//! A child process that does one part of a test, and the lines it says.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::unistd::geteuid;
use peerfs_sys::ProcessHandle;

use super::ScratchMount;

/// A child that says nothing for so long hangs.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What only root can try: to be another user.
#[derive(Debug, thiserror::Error)]
#[error("only root can play another user, or make namespaces")]
pub struct NeedsRoot;

/// The user that hostile programs run as.
pub const NOBODY: u32 = 65534;
/// Another user, to whom descriptors are passed on.
pub const SOMEBODY: u32 = 65533;

/// The `peerfs-torture` binary beside the running program.
fn torture_program() -> Result<PathBuf> {
    let mut path = std::env::current_exe()?;
    path.pop();
    if path.ends_with("deps") {
        path.pop();
    }
    path.push("peerfs-torture");
    anyhow::ensure!(path.exists(), "{} is missing: build peerfs-tests", path.display());
    Ok(path)
}

/// Starts children of a test.
pub struct Nursery {
    program: PathBuf,
    subcommand: &'static str,
}

impl Nursery {
    /// Children are parts of `peerfs-torture`.
    ///
    /// # Errors
    /// When it cannot be copied.
    pub fn new(scratch: &ScratchMount) -> Result<Nursery> {
        Nursery::of_program(scratch, &torture_program()?, "child")
    }

    /// Puts the program where every user can run it, and opens the way to the mount. Children are `PROGRAM SUBCOMMAND
    /// ARGUMENTS`.
    ///
    /// # Errors
    /// When it cannot be copied.
    pub fn of_program(scratch: &ScratchMount, original: &Path, subcommand: &'static str) -> Result<Nursery> {
        let program = scratch.directory().join(original.file_name().context("a program has a name")?);
        if !program.exists() {
            // By another process: a child that another thread starts just now would inherit our descriptor of the copy,
            // and a program that somebody has open for writing cannot be run.
            let copied = Command::new("cp").arg(original).arg(&program).status().context("cp(1)")?;
            ensure!(copied.success(), "{} cannot be copied", original.display());
        }
        for path in [scratch.directory(), program.as_path()] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
        }
        Ok(Nursery { program, subcommand })
    }

    /// Starts a child as user `uid`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start<S: AsRef<OsStr>>(&self, uid: u32, arguments: &[S]) -> Result<Worker> {
        let (sender, receiver) = channel();
        let stdin = Input::Commands;
        self.launch(uid, arguments, stdin, move |line| sender.send(line).is_ok(), Some(receiver))
    }

    /// As [`Nursery::start`], with a descriptor as standard input.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_with<S: AsRef<OsStr>>(&self, uid: u32, arguments: &[S], input: OwnedFd) -> Result<Worker> {
        let (sender, receiver) = channel();
        self.launch(uid, arguments, Input::Descriptor(input), move |line| sender.send(line).is_ok(), Some(receiver))
    }

    /// As [`Nursery::start`]; what it says goes, with `tag`, to a channel shared with others.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_tagged<S: AsRef<OsStr>>(
        &self,
        uid: u32,
        arguments: &[S],
        tag: usize,
        sender: Sender<(usize, String)>,
    ) -> Result<Worker> {
        self.launch(uid, arguments, Input::Commands, move |line| sender.send((tag, line)).is_ok(), None)
    }

    fn launch<S: AsRef<OsStr>>(
        &self,
        uid: u32,
        arguments: &[S],
        input: Input,
        mut hear: impl FnMut(String) -> bool + Send + 'static,
        lines: Option<Receiver<String>>,
    ) -> Result<Worker> {
        let (stdin, commands) = match input {
            Input::Descriptor(fd) => (Stdio::from(fd), None),
            Input::Commands => {
                let (ours, theirs) = UnixStream::pair()?;
                (Stdio::from(OwnedFd::from(theirs)), Some(ours))
            }
        };
        let mut command = Command::new(&self.program);
        command.arg(self.subcommand).args(arguments).current_dir("/");
        match (geteuid().is_root(), uid) {
            (true, _) => drop(command.uid(uid).gid(uid)),
            // The user whom the server runs as.
            (false, 0) => {}
            (false, _) => return Err(NeedsRoot.into()),
        }
        let mut child = command.stdin(stdin).stdout(Stdio::piped()).spawn().with_context(|| format!("{command:?}"))?;
        let stdout = child.stdout.take().context("stdout is a pipe")?;
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if !hear(line) {
                    break;
                }
            }
        });
        let name = arguments.iter().map(|argument| argument.as_ref().to_string_lossy()).collect::<Vec<_>>().join(" ");
        Ok(Worker { handle: ProcessHandle::open(child.id())?, child, commands, lines, name })
    }
}

enum Input {
    Commands,
    Descriptor(OwnedFd),
}

/// A running child. Dropping it kills it.
pub struct Worker {
    child: Child,
    handle: ProcessHandle,
    commands: Option<UnixStream>,
    lines: Option<Receiver<String>>,
    name: String,
}

impl Worker {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line it says; `None` when it has ended.
    ///
    /// # Errors
    /// When it stays silent.
    pub fn line(&self) -> Result<Option<String>> {
        self.line_within(PATIENCE)
    }

    fn line_within(&self, patience: Duration) -> Result<Option<String>> {
        let lines = self.lines.as_ref().context("its lines go elsewhere")?;
        match lines.recv_timeout(patience) {
            Ok(line) => Ok(Some(line)),
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => bail!("`{}` says nothing for {patience:?}", self.name),
        }
    }

    /// The rest of the next line, which must begin with `word`.
    ///
    /// # Errors
    /// When it says something else, or nothing.
    pub fn expect(&self, word: &str) -> Result<String> {
        self.expect_within(word, PATIENCE)
    }

    /// As [`Worker::expect`], of one that has much to do.
    ///
    /// # Errors
    /// As [`Worker::expect`].
    pub fn expect_within(&self, word: &str, patience: Duration) -> Result<String> {
        let line = self.line_within(patience)?.with_context(|| format!("`{}` ended instead of saying `{word}`", self.name))?;
        let rest = line.strip_prefix(word).with_context(|| format!("`{}` says `{line}` instead of `{word}`", self.name))?;
        Ok(rest.trim_start().to_owned())
    }

    /// Everything it says until it ends.
    ///
    /// # Errors
    /// When it stays silent without ending.
    pub fn rest(&self) -> Result<Vec<String>> {
        let mut all = Vec::new();
        while let Some(line) = self.line()? {
            all.push(line);
        }
        Ok(all)
    }

    /// Sends it a line.
    ///
    /// # Errors
    /// When it has ended.
    pub fn tell(&self, line: &str) -> Result<()> {
        let mut commands = self.channel()?;
        writeln!(commands, "{line}").with_context(|| format!("`{}` takes no commands any more", self.name))
    }

    /// The socket that is its standard input.
    ///
    /// # Errors
    /// When its standard input is something else.
    pub fn channel(&self) -> Result<&UnixStream> {
        self.commands.as_ref().context("it takes no commands")
    }

    /// Kills it with SIGKILL.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn kill(&mut self) -> Result<()> {
        // It may have ended already.
        let _ = self.child.kill();
        Ok(self.child.wait().map(drop)?)
    }

    /// A descriptor it passes on.
    ///
    /// # Errors
    /// When what comes is none.
    pub fn receive_descriptor(&self) -> Result<OwnedFd> {
        let (_, fd) = peerfs_sys::receive_with_fd(self.channel()?, &mut [0; 16])?;
        fd.context("no descriptor came with the message")
    }

    /// Has it ended?
    ///
    /// # Errors
    /// What poll(2) answers.
    pub fn has_ended(&self) -> Result<bool> {
        Ok(self.handle.wait_exit(Duration::ZERO)?)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it does not end.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        if !self.handle.wait_exit(PATIENCE)? {
            bail!("`{}` does not end within {PATIENCE:?}", self.name);
        }
        Ok(self.child.wait()?)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// For children: ends with the parent, so that a failed test leaves nothing behind.
///
/// # Errors
/// What prctl(2) answers.
pub fn die_with_parent() -> Result<()> {
    Ok(nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?)
}

/// For children: says a line to the parent.
///
/// # Errors
/// When nobody listens any more.
pub fn say(line: impl std::fmt::Display) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{line}")?;
    Ok(stdout.flush()?)
}

/// For children: waits for a line of the parent.
///
/// # Errors
/// When the parent has ended.
pub fn hear() -> Result<String> {
    let mut line = String::new();
    anyhow::ensure!(std::io::stdin().read_line(&mut line)? > 0, "the parent has ended");
    Ok(line.trim_end().to_owned())
}

/// Arguments of a child, of mixed kinds.
#[macro_export]
macro_rules! words {
    ($($word:expr),* $(,)?) => { [$(::std::ffi::OsString::from($word)),*] };
}

/// A file of the tests that everybody may open, with these bytes, synced.
///
/// # Errors
/// When it cannot be written.
pub fn shared_file(path: &Path, content: &[u8]) -> Result<()> {
    let mut file = fs::File::create(path)?;
    file.write_all(content)?;
    file.set_permissions(fs::Permissions::from_mode(0o666))?;
    Ok(file.sync_all()?)
}
