//! Signals to programs that wait for an importer. The server never hears of them: a call that has been sent ends as it
//! would have without, and only then does the program see the signal.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use peerfs_abi::{MapFlags, Trigger};

use super::revocation::LAST_STORE;
use super::triggers::wait_until;
use crate::case::{Case, Setup};
use crate::evidence::Way::Direct;
use crate::puppet::Puppet;
use crate::scene::{CHUNK, PAGE, Scene, Subject, same_bytes};
use crate::witness::Witness;

pub const CASES: &[Case] = &[
    Case::new(
        "signal-in-truncate",
        "a truncate that waits for a hung importer goes on when its program gets a signal, and ends well; the program sees it then",
        Setup::PATIENT,
        in_truncate,
    )
    .revoking(Trigger::Truncate),
    Case::new(
        "signal-kills-truncate",
        "a program that is killed while its truncate waits ends with it, and the truncate is carried out",
        Setup::PATIENT,
        kills_truncate,
    )
    .revoking(Trigger::Truncate),
    Case::new(
        "signal-in-map",
        "a map that waits for another importer goes on when its program is stopped or killed, and leaks no window",
        Setup::PATIENT,
        in_map,
    )
    .revoking(Trigger::Relocation),
];

/// Waits until a program that had a signal waits on, which its state tells: it can no longer be interrupted.
fn waits_uninterrupted(scene: &Scene<'_>, pid: u32) -> Result<()> {
    let state = || -> Option<char> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(") ")?.1.chars().next()
    };
    wait_until(|| state() == Some('D')).with_context(|| format!("the program is in state {:?}", state()))?;
    // The server has had the time to give up the call, if it would.
    scene.round_trips(20)
}

fn signal(pid: u32, signal: Signal) -> Result<()> {
    Ok(kill(Pid::from_raw(pid.cast_signed()), signal)?)
}

/// A shell that has a handler, and empties the file by opening it. Killed when a case fails.
struct Shell(Child);

impl Shell {
    const SCRIPT: &str = r#"trap 'echo signalled' USR1; : > "$1"; echo "emptied $?""#;

    fn empties(file: &Subject) -> Result<Shell> {
        let mut command = Command::new("sh");
        command.args(["-c", Shell::SCRIPT, "sh"]).arg(&file.path).stdout(Stdio::piped());
        Ok(Shell(command.spawn().context("sh(1)")?))
    }

    /// Everything it says until it ends.
    fn said(&mut self) -> Result<Vec<String>> {
        let stdout = self.0.stdout.take().context("stdout is a pipe")?;
        let said = BufReader::new(stdout).lines().collect::<Result<_, _>>()?;
        self.0.wait()?;
        Ok(said)
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn in_truncate(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", CHUNK)?;
    let witness = Witness::map(scene, &file, 0..CHUNK, MapFlags::WRITE)?;
    let mut shell = Shell::empties(&file)?;
    let event = witness.expect_event(scene, Trigger::Truncate)?;
    signal(shell.0.id(), Signal::SIGUSR1)?;
    waits_uninterrupted(scene, shell.0.id())?;
    witness.expect_alive().context("the signal cut the importer short")?;
    ensure!(witness.load(0, CHUNK as usize)? == file.content, "the importer sees other bytes than before");
    witness.acknowledge(&event)?;
    let mut said = shell.said()?;
    said.sort();
    ensure!(said == ["emptied 0", "signalled"], "the program says {said:?}");
    witness.expect_cut()?;
    ensure!(fs::read(&file.path)?.is_empty(), "the file still has bytes");
    Ok(())
}

/// A puppet with this file open for reading and writing, and a session.
fn client(scene: &Scene<'_>, file: &Subject) -> Result<Puppet> {
    let puppet = Puppet::start(scene, 0)?;
    puppet.obey(&format!("open write {}", file.path.display()))?;
    puppet.obey(&format!("session {}", scene.directory.display()))?;
    Ok(puppet)
}

fn kills_truncate(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", CHUNK)?;
    let witness = Witness::map(scene, &file, 0..CHUNK, MapFlags::WRITE)?;
    let mut puppet = client(scene, &file)?;
    puppet.send(&format!("truncate {}", 5 * PAGE))?;
    let event = witness.expect_event(scene, Trigger::Truncate)?;
    signal(puppet.pid(), Signal::SIGKILL)?;
    waits_uninterrupted(scene, puppet.pid())?;
    witness.expect_alive().context("the signal cut the importer short")?;
    witness.store(0, LAST_STORE)?;
    witness.acknowledge(&event)?;
    puppet.kill()?;
    witness.expect_cut()?;
    let mut expected = file.content[..5 * PAGE as usize].to_vec();
    expected[..LAST_STORE.len()].copy_from_slice(LAST_STORE);
    same_bytes(&fs::read(&file.path)?, &expected)
}

fn in_map(scene: &mut Scene<'_>) -> Result<()> {
    let file = scene.file("file", CHUNK)?;
    let puppet = client(scene, &file)?;
    map_despite(scene, &file, &puppet, Signal::SIGSTOP)?;
    signal(puppet.pid(), Signal::SIGCONT)?;
    let (path, all) = (scene.direct_path() as u32, format!("0:{CHUNK}"));
    let answer = puppet.hear()?;
    ensure!(answer == format!("ok {all}:{path}:0"), "after the signal the map answers `{answer}`");
    puppet.obey("take").context("its window")?;
    puppet.obey("unmap own")?;

    let mut puppet = client(scene, &file)?;
    map_despite(scene, &file, &puppet, Signal::SIGKILL)?;
    puppet.kill()?;
    // What the dead program mapped ends with its session: nothing of it is in the way.
    let one = |info: serde_json::Value| info["mappings"] == 0 && info["windows"] == 0;
    wait_until(|| scene.mount.info().is_ok_and(one)).context("the window of a dead program is left")?;
    let session = scene.session()?;
    let mapping = session.map(&file.handle, .., MapFlags::WRITE)?;
    scene.expect_map(&mapping, &[(0..CHUNK, Direct)])?;
    scene.reads_directly(&mapping, 0, &file.content)
}

/// A map with WRITE waits for a witness that reads; its program gets the signal, the witness acknowledges.
fn map_despite(scene: &Scene<'_>, file: &Subject, puppet: &Puppet, which: Signal) -> Result<()> {
    let witness = Witness::map(scene, file, 0..CHUNK, MapFlags::empty())?;
    puppet.send(&format!("map 0 {CHUNK} {}", MapFlags::WRITE.bits()))?;
    let event = witness.expect_event(scene, Trigger::Relocation)?;
    signal(puppet.pid(), which)?;
    waits_uninterrupted(scene, puppet.pid())?;
    witness.expect_alive().context("the signal cut the importer short")?;
    witness.acknowledge(&event)?;
    wait_until(|| witness.expect_cut().is_ok()).map_err(|_| anyhow!("the old window outlives its acknowledgement"))
}
