//! The temporary volume of a demo: made, used and cleaned up whatever happens.

use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::signal::{SigSet, Signal};
use peerfs_sys::ProcessHandle;
use serde_json::Value;
use tempfile::TempDir;

use super::DEADLINE_MS;
use crate::commands::server_info;
use crate::config::own_program;

/// Exit code of a program ended by Ctrl-C, as shells give it.
const INTERRUPTED: i32 = 130;
const END_WAIT: Duration = Duration::from_secs(10);

/// Says in one line why no filesystem can be mounted here, if so.
pub fn can_mount() -> Result<()> {
    if !Path::new("/dev/fuse").exists() {
        bail!(
            "/dev/fuse is missing; load the module (modprobe fuse), or start the container with --device /dev/fuse --cap-add SYS_ADMIN"
        );
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let helped = !peerfs_sys::Capability::SysAdmin.is_held();
    if helped && !std::env::split_paths(&path).any(|directory| directory.join("fusermount3").exists()) {
        bail!("mounting needs root or fusermount3; run as root or install the package fuse3");
    }
    if let Err(error) = OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        bail!("/dev/fuse cannot be opened ({error}); run as root, or let users have it (chmod 666 /dev/fuse)");
    }
    Ok(())
}

/// Directory, image and mount point, with all processes that were started.
pub struct Sandbox {
    state: Arc<Mutex<State>>,
    root: PathBuf,
}

/// What is left to clean up.
struct State {
    directory: Option<TempDir>,
    helpers: Vec<ProcessHandle>,
    keep: bool,
}

/// A child that maps a file. It is killed with the sandbox.
pub struct Helper {
    child: Child,
    process: ProcessHandle,
    stdout: BufReader<ChildStdout>,
}

impl Sandbox {
    /// Makes the directories, and from now on cleans up on SIGINT, SIGTERM and SIGHUP.
    pub fn create(parent: Option<&Path>, keep: bool) -> Result<Sandbox> {
        let parent = parent.map_or_else(std::env::temp_dir, Path::to_owned);
        let parent = parent.canonicalize().with_context(|| parent.display().to_string())?;
        let directory = tempfile::Builder::new()
            .prefix("peerfs-demo-")
            .tempdir_in(&parent)
            .with_context(|| format!("no directory can be made in {}", parent.display()))?;
        let root = directory.path().to_owned();
        fs::create_dir(root.join("mnt"))?;
        let state = Arc::new(Mutex::new(State { directory: Some(directory), helpers: Vec::new(), keep }));
        let sandbox = Sandbox { state, root };
        sandbox.tidy_on_signal()?;
        Ok(sandbox)
    }

    fn tidy_on_signal(&self) -> Result<()> {
        let mut signals = SigSet::empty();
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
            signals.add(signal);
        }
        // No other thread runs yet; those that start later inherit this.
        signals.thread_block()?;
        let sandbox = Sandbox { state: Arc::clone(&self.state), root: self.root.clone() };
        std::thread::Builder::new().name("peerfs-signals".into()).spawn(move || {
            if signals.wait().is_ok() {
                sandbox.tidy();
                eprintln!("peerfs: demo: interrupted; everything is cleaned up");
                std::process::exit(INTERRUPTED);
            }
        })?;
        Ok(())
    }

    /// Where the volume is mounted.
    pub fn mountpoint(&self) -> PathBuf {
        self.root.join("mnt")
    }

    /// A file of the volume.
    pub fn path(&self, name: &str) -> PathBuf {
        self.mountpoint().join(name)
    }

    /// Name of the volume's device.
    pub fn device(&self) -> String {
        format!("image:{}", self.image().display())
    }

    fn image(&self) -> PathBuf {
        self.root.join("volume.img")
    }

    /// Runs this program as a user would; answers what it prints. Its error line becomes ours.
    pub fn peerfs(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new(own_program()?).args(arguments).stdin(Stdio::null()).output()?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let stderr = String::from_utf8_lossy(&output.stderr);
        let said = stderr.lines().rev().find_map(|line| line.strip_prefix("peerfs: "));
        let command = arguments.first().copied().unwrap_or_default();
        Err(said.map_or_else(|| anyhow!("peerfs {command} failed with {}", output.status), |line| anyhow!("{line}")))
    }

    /// Mounts the volume with an aperture of this size.
    pub fn mount(&self, cmb_bytes: u64) -> Result<()> {
        let mountpoint = self.mountpoint().display().to_string();
        let options = format!("deadline_ms={DEADLINE_MS}");
        self.peerfs(&["mount", &self.device(), &mountpoint, "--cmb", &cmb_bytes.to_string(), "-o", &options]).map(drop)
    }

    /// Unmounts, waiting until the volume is closed.
    pub fn unmount(&self) -> Result<()> {
        self.peerfs(&["umount", &self.mountpoint().display().to_string()]).map(drop)
    }

    /// State of the server.
    pub fn info(&self) -> Result<Value> {
        Ok(server_info::info(&self.mountpoint())?)
    }

    /// The server's process.
    pub fn server(&self) -> Result<ProcessHandle> {
        let info = self.info()?;
        let pid = server_info::server_pid(&info).context("the server does not say its process number")?;
        ProcessHandle::open(pid).with_context(|| format!("server {pid}"))
    }

    /// Starts an importer that never acknowledges on a file, and waits until it has its mapping.
    pub fn start_hung(&self, file: &Path) -> Result<Helper> {
        let mut child = Command::new(own_program()?)
            .arg("demo-hung")
            .arg(file)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("the importer's process cannot be started")?;
        self.lock().helpers.push(ProcessHandle::open(child.id())?);
        let process = ProcessHandle::open(child.id())?;
        let stdout = child.stdout.take().context("the importer's output")?;
        let mut helper = Helper { child, process, stdout: BufReader::new(stdout) };
        helper.wait_mapped()?;
        Ok(helper)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends everything that was started and removes everything that was made; answers the image if it is kept.
    pub fn tidy(&self) -> Option<PathBuf> {
        let mut state = self.lock();
        for helper in state.helpers.drain(..) {
            // Ended already, as it should have.
            let _ended = helper.kill();
        }
        if self.is_mounted()
            && let Err(error) = self.peerfs(&["umount", "--force", &self.mountpoint().display().to_string()])
        {
            tracing::error!(mountpoint = %self.mountpoint().display(), "still mounted: {error:#}");
            // Removing the directory would remove the files of the volume.
            state.keep = true;
        }
        let directory = state.directory.take()?;
        if state.keep {
            let _kept = directory.keep();
            return Some(self.image());
        }
        if let Err(error) = directory.close() {
            tracing::error!(directory = %self.root.display(), %error, "the temporary directory is left over");
        }
        None
    }

    fn is_mounted(&self) -> bool {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mountpoint = self.mountpoint();
        let wanted = mountpoint.to_string_lossy().replace(' ', "\\040");
        table.lines().any(|line| line.split(' ').nth(4) == Some(wanted.as_str()))
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.tidy();
    }
}

impl Helper {
    fn wait_mapped(&mut self) -> Result<()> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        if line.starts_with("mapped") {
            return Ok(());
        }
        let mut said = String::new();
        if let Some(stderr) = &mut self.child.stderr {
            stderr.read_to_string(&mut said)?;
        }
        bail!("the importer's process got no mapping: {}", said.trim());
    }

    /// Waits until the process has ended and verifies that SIGBUS ended it: it touched memory that was taken away.
    pub fn ended_by_sigbus(mut self) -> Result<()> {
        use std::os::unix::process::ExitStatusExt;
        ensure!(self.process.wait_exit(END_WAIT)?, "the importer still runs: its mapping was not taken away");
        let status = self.child.wait()?;
        let signal = status.signal();
        ensure!(signal == Some(Signal::SIGBUS as i32), "the importer ended with {status}, not with SIGBUS");
        Ok(())
    }
}
