//! The machine dies while programs write: the guest's half writes until then, the host judges what is left.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::lab::guest::{A, B, Controller, Guest};

/// How files are written at once, by the names of the crash torture. `device` is not among them: an emulated CMB is slow.
pub const WAYS: [&str; 5] = ["buffered", "direct", "mapped", "create", "rename"];
/// Writers that say nothing for so long hang.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) fn pmr(guest: &mut Guest<'_>) -> Result<()> {
    write(guest, A, "pmr")
}

pub(super) fn ns1(guest: &mut Guest<'_>) -> Result<()> {
    write(guest, B, "ns1")
}

/// What the versions of a writer are derived from.
pub fn writer_seed(seed: u64, boot: usize, writer: usize) -> u64 {
    seed.wrapping_mul(1009).wrapping_add(boot as u64 * 31 + writer as u64)
}

/// Where a writer's file is in the volume.
pub fn file(boot: usize, writer: usize) -> PathBuf {
    PathBuf::from(format!("round-{boot}")).join(WAYS[writer])
}

fn write(guest: &mut Guest<'_>, controller: Controller, part: &str) -> Result<()> {
    guest.bind(controller)?;
    let device = controller.part(part);
    if guest.boot() == 0 {
        guest.peerfs(&["mkfs", &device])?;
    }
    let point = guest.mount(&device)?;
    let (sender, said) = channel();
    let mut answers = Vec::new();
    for writer in 0..WAYS.len() {
        let path = point.join(file(guest.boot(), writer));
        fs::create_dir_all(path.parent().context("a file is in a directory")?)?;
        answers.push(start(writer, path, writer_seed(guest.seed(), guest.boot(), writer), sender.clone())?);
    }
    drop(sender);
    loop {
        match said.recv_timeout(PATIENCE) {
            Ok((writer, version)) => {
                guest.synced(writer, version)?;
                // Only now: what it does next may be the last thing that is written.
                writeln!(answers[writer]).context("a writer ended before the machine")?;
            }
            Err(RecvTimeoutError::Timeout) => bail!("the writers say nothing for {PATIENCE:?}"),
            Err(RecvTimeoutError::Disconnected) => bail!("the writers ended before the machine"),
        }
    }
}

fn start(writer: usize, path: PathBuf, seed: u64, sender: Sender<(usize, u64)>) -> Result<ChildStdin> {
    let mut command = Command::new("peerfs-torture");
    command.args(["child", "write", WAYS[writer]]).arg(path).args([&seed.to_string(), "answered"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("peerfs-torture")?;
    let output = child.stdout.take().context("its output is a pipe")?;
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            let version = line.split(' ').next().and_then(|word| word.parse().ok());
            if version.is_none_or(|version| sender.send((writer, version)).is_err()) {
                return;
            }
        }
    });
    child.stdin.take().context("its input is a pipe")
}
