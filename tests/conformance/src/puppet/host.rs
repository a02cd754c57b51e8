//! The side of the case.

use std::io::IoSlice;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::ExitStatus;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use peerfs_abi::{MapFlags, Path, Reason};

use super::SUBCOMMAND;
use crate::evidence::Way;
use crate::kit::worker::{Nursery, Worker};
use crate::kit::{ScratchMount, peerfs};
use crate::scene::{Scene, Stretch};

/// A running puppet. Dropping it kills it.
pub struct Puppet(Worker);

impl Puppet {
    /// Starts one as this user.
    pub fn start(scene: &Scene<'_>, uid: u32) -> Result<Puppet> {
        Puppet::start_on(scene.mount, uid)
    }

    pub(super) fn start_on(scratch: &ScratchMount, uid: u32) -> Result<Puppet> {
        let nursery = Nursery::of_program(scratch, &peerfs(), SUBCOMMAND)?;
        let puppet = Puppet(nursery.start::<&str>(uid, &[])?);
        ensure!(puppet.hear()? == "ok", "it does not start");
        Ok(puppet)
    }

    /// Sends a command without waiting for its answer.
    pub fn send(&self, command: &str) -> Result<()> {
        self.0.tell(command)
    }

    /// The next answer.
    pub fn hear(&self) -> Result<String> {
        self.0.line()?.context("the puppet ended")
    }

    /// Sends a command; its answer, whatever it is.
    pub fn ask(&self, command: &str) -> Result<String> {
        self.send(command)?;
        self.hear()
    }

    /// Sends a command that must succeed; what it answers.
    pub fn obey(&self, command: &str) -> Result<String> {
        let answer = self.ask(command)?;
        match answer.strip_prefix("ok") {
            Some(rest) => Ok(rest.trim_start().to_owned()),
            None => bail!("`{command}` answers `{answer}`"),
        }
    }

    /// It maps a range of its file with these flags, and gets exactly this.
    pub fn expect_map(
        &self,
        scene: &Scene<'_>,
        range: Range<u64>,
        flags: MapFlags,
        expected: &[(Range<u64>, Way)],
    ) -> Result<()> {
        let command = format!("map {} {} {}", range.start, range.end - range.start, flags.bits());
        let answer = self.obey(&command)?;
        scene.expect_stretches(parse(&answer)?, expected).context(command)
    }

    /// It maps a range in another way, named by the first words of the command, and gets exactly this.
    pub fn expect_said(&self, scene: &Scene<'_>, how: &str, range: Range<u64>, expected: &[(Range<u64>, Way)]) -> Result<()> {
        let answer = self.obey(&format!("{how} {} {}", range.start, range.end - range.start))?;
        scene.expect_stretches(parse(&answer)?, expected).with_context(|| how.to_owned())
    }

    /// Its session, passed to us.
    pub fn take_session(&self) -> Result<OwnedFd> {
        self.send("pass")?;
        let fd = self.0.receive_descriptor()?;
        ensure!(self.hear()? == "ok", "it does not pass its session");
        Ok(fd)
    }

    /// Passes it a session, or memory.
    pub fn give(&self, given: &impl AsRawFd) -> Result<()> {
        ensure!(self.ask("receive")? == "ready", "it does not take a descriptor");
        let fds = [given.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&fds)];
        sendmsg::<()>(self.0.channel()?.as_raw_fd(), &[IoSlice::new(b"x")], &rights, MsgFlags::empty(), None)?;
        ensure!(self.hear()? == "ok", "it does not take what it is given");
        Ok(())
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.0.pid()
    }

    /// Waits for its end, and asks for it if it listens.
    pub fn end(&mut self) -> Result<ExitStatus> {
        // It may have ended already.
        let _ = self.send("quit");
        self.0.wait()
    }

    /// Kills it with SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        self.0.kill()
    }
}

/// The stretches of an answer: `OFFSET:LENGTH:PATH:REASON` each.
pub(super) fn parse(answer: &str) -> Result<Vec<Stretch>> {
    let stretch = |word: &str| -> Result<Stretch> {
        let numbers = word.split(':').map(str::parse).collect::<Result<Vec<u64>, _>>().with_context(|| word.to_owned())?;
        let [offset, length, path, reason] = numbers[..] else { bail!("`{word}` is no stretch") };
        let path = Path::from_code(path as u32).context("an unknown path")?;
        Ok(Stretch::new(offset..offset + length, path, Reason::from_code(reason as u32)))
    };
    answer.split(' ').map(stretch).collect()
}
