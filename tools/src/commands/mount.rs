//! `peerfs mount`: the server, in the foreground or started into the background.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{SigSet, Signal};
use peerfs_fs::fuse::{mount_table_entry, unmount};
use peerfs_fs::server::{LOCK_WAIT, Server};
use peerfs_p2p::{Engine, Range, Trigger};
use sd_notify::NotifyState;

use super::remount;
use crate::args::{LogArgs, LogFormat, MountArgs};
use crate::config::{self, MountConfig};
use crate::failure::Reported;
use crate::{controller, output, volume_check};

/// What a background server says on stdout once the mount is usable.
const READY: &str = "ready";

pub fn run(args: MountArgs, log: &LogArgs) -> Result<ExitCode> {
    if remount::is_asked(&args.options) && !args.fake {
        return remount::run(&args.mountpoint, &args.options);
    }
    let config = config::mount(&args)?;
    if args.fake {
        return Ok(ExitCode::SUCCESS);
    }
    if args.foreground || args.ready_stdout {
        serve(&config, args.ready_stdout)
    } else {
        start_in_background(&args, log, &config)
    }
}

/// Runs this program once more as the server and waits for its word. What it says on the way goes to our stderr.
fn start_in_background(args: &MountArgs, log: &LogArgs, config: &MountConfig) -> Result<ExitCode> {
    let mut command = Command::new(config::own_program()?);
    command.arg("mount").arg(&args.device).arg(&args.mountpoint).arg("--foreground").arg("--ready-stdout");
    for options in &args.options {
        command.arg("-o").arg(options);
    }
    if let Some(cmb) = args.cmb {
        command.arg("--cmb").arg(cmb.to_string());
    }
    if let Some(address) = args.metrics {
        command.arg("--metrics").arg(address.to_string());
    }
    if let Some(level) = &log.log_level {
        command.arg("--log-level").arg(level);
    }
    if log.log_format == LogFormat::Json {
        command.args(["--log-format", "json"]);
    }
    if let Some(log) = &config.log {
        command.arg("--log").arg(log);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut server = command.spawn().context("the server cannot be started")?;
    let said = collect_lines(server.stderr.take())?;
    let ready = is_ready(&mut server);
    // It ends when the server goes into the background or dies.
    let said = said.join().unwrap_or_default();
    if ready {
        said.iter().for_each(|line| eprintln!("{line}"));
        return Ok(ExitCode::SUCCESS);
    }
    let status = server.wait().context("the server")?;
    let device = &config.server.device;
    match status.signal() {
        Some(signal) => {
            bail!("mount {device}: the server died of signal {signal} while it opened the volume; run peerfs fsck {device}")
        }
        None if said.is_empty() => bail!("mount {device}: the server ended with {status}"),
        None => said.iter().for_each(|line| eprintln!("{line}")),
    }
    Err(Reported.into())
}

/// Keeps what the server says until it is known whether a crash makes it moot.
fn collect_lines(stderr: Option<ChildStderr>) -> Result<JoinHandle<Vec<String>>> {
    let lines = move || stderr.map_or_else(Vec::new, |stderr| BufReader::new(stderr).lines().map_while(Result::ok).collect());
    std::thread::Builder::new().spawn(lines).context("a thread cannot be started")
}

fn is_ready(server: &mut Child) -> bool {
    let Some(stdout) = server.stdout.take() else { return false };
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line).is_ok() && line.trim_end() == READY
}

/// Serves until the volume is unmounted.
fn serve(config: &MountConfig, background: bool) -> Result<ExitCode> {
    let server = &config.server;
    let what = || format!("mount {} on {}", server.device, server.mountpoint.display());
    // Before any thread starts: the signals are for the one that waits for them.
    let signals = block_end_signals()?;
    if background {
        // Fails only for the leader of a process group, which a started child is not.
        let _already_leader = nix::unistd::setsid();
    }
    let log = config.log.as_deref().filter(|_| background).map(open_log).transpose()?;
    // Dropped last: the controller's driver gets it back when nothing of ours uses it any more.
    let held = controller::hold(&server.device, LOCK_WAIT).with_context(what)?;
    let held_importers = server.importers.iter().map(|(address, _)| controller::hold_importer(*address, LOCK_WAIT));
    let _held_importers = held_importers.collect::<Result<Vec<_>>>().with_context(what)?;
    volume_check::before_opening(&server.device).with_context(what)?;
    let running = Server::start(server, held.lock()?).with_context(what)?;
    end_on_signal(signals, &running.engine(), running.mountpoint())?;
    if background {
        go_into_background(log)?;
    } else {
        output::print(&format!("{} is mounted on {}; Ctrl-C unmounts\n", server.device, running.mountpoint().display()))?;
        tell_service_manager(&[NotifyState::Ready]);
    }
    tracing::info!(device = %server.device, mountpoint = %running.mountpoint().display(), "mounted");
    let ended = running.wait().with_context(what);
    if let (true, Err(error)) = (background, &ended) {
        tracing::error!("{}", crate::failure::line(error));
    }
    tracing::info!(device = %server.device, "closed");
    ended.map(|()| ExitCode::SUCCESS)
}

/// Tells systemd, if it started this server as a service of the type `notify`.
fn tell_service_manager(state: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager does not listen");
    }
}

fn open_log(path: &Path) -> Result<File> {
    OpenOptions::new().append(true).create(true).open(path).with_context(|| format!("log {}", path.display()))
}

/// Ctrl-C and its like are for who waits for them, from now on.
pub fn block_end_signals() -> Result<SigSet> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block().context("signals cannot be blocked")?;
    Ok(signals)
}

/// Lets go of everything the starting process may wait for or take away, and tells it that the mount is usable.
fn go_into_background(log: Option<File>) -> Result<()> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null").context("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stderr(log.as_ref().unwrap_or(&null))?;
    let mut stdout = std::io::stdout();
    // Nobody reads it when the starting process was killed; the mount stays.
    let _ = writeln!(stdout, "{READY}").and_then(|()| stdout.flush());
    nix::unistd::dup2_stdout(&null)?;
    std::env::set_current_dir("/").context("/")
}

fn end_on_signal(signals: SigSet, engine: &Arc<Engine>, mountpoint: std::path::PathBuf) -> Result<()> {
    // The thread waits for ever, and must not keep the device open.
    let engine = Arc::downgrade(engine);
    let wait = move || {
        while let Ok(signal) = signals.wait() {
            let Some(engine) = engine.upgrade() else { break };
            tracing::info!(%signal, "unmounting");
            tell_service_manager(&[NotifyState::Stopping]);
            let report = engine.revoke(None, Range::ALL, Trigger::Unmount);
            // While the mount still carries events and acknowledgements; the end of the server would be too late.
            let pins = engine.revoke_pins(None, Range::ALL, Trigger::Unmount);
            tracing::debug!(?report, ?pins, "direct mappings ended");
            if let Err(error) = unmount_finally(&mountpoint) {
                tracing::error!(mountpoint = %mountpoint.display(), %error, "cannot unmount");
            }
        }
    };
    std::thread::Builder::new().name("peerfs-signals".into()).spawn(wait).context("the signal thread cannot be started")?;
    Ok(())
}

/// Unmounts even while programs have files open: what they have stored is written back first, then they get errors.
fn unmount_finally(mountpoint: &Path) -> std::io::Result<()> {
    match unmount(mountpoint, false) {
        Err(error) if error.raw_os_error() == Some(Errno::EBUSY as i32) => {}
        other => return other.map(drop),
    }
    if let Err(error) = File::open(mountpoint).and_then(|root| Ok(nix::unistd::syncfs(root)?)) {
        tracing::warn!(%error, "not everything in the page cache could be written back");
    }
    match umount2(mountpoint, MntFlags::MNT_FORCE | MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Err(Errno::EPERM) => {
            let entry = mount_table_entry(mountpoint);
            unmount(mountpoint, true)?;
            entry.map_or(Ok(()), |entry| entry.abort())
        }
        other => Ok(other?),
    }
}
