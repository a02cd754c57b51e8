//! A shell that is given one command after the other, as a person would.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// Longest time that one command may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// Begins the line that tells how a command ended.
const MARK: &str = "--peerfs-documents-end-of-command--";

/// What a command printed on both streams, and its exit status.
pub struct Answer {
    /// Lines, without a last one that is empty.
    pub lines: Vec<String>,
    /// Exit status.
    pub status: i32,
}

/// A running bash. It ends with its jobs when this is dropped.
pub struct Shell {
    process: Child,
    input: ChildStdin,
    output: Receiver<String>,
}

impl Shell {
    /// Starts one in a directory. `programs` is where it looks for `peerfs` first.
    pub fn start(directory: &Path, programs: &Path) -> Result<Shell> {
        let path = std::env::var("PATH").unwrap_or_default();
        let mut process = Command::new("bash")
            .args(["--noprofile", "--norc"])
            .current_dir(directory)
            .process_group(0)
            .env("PATH", format!("{}:{path}", programs.display()))
            .env("LC_ALL", "C.UTF-8")
            .env_remove("RUST_LOG")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("bash cannot be started")?;
        let mut input = process.stdin.take().context("piped")?;
        let output = BufReader::new(process.stdout.take().context("piped")?);
        let (sender, lines) = channel();
        // Ends with the last program that has the pipe.
        std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        writeln!(input, "exec 2>&1")?;
        Ok(Shell { process, input, output: lines })
    }

    /// Runs a command to its end.
    pub fn run(&mut self, command: &str) -> Result<Answer> {
        writeln!(self.input, "{command}\nprintf '\\n%s %d\\n' '{MARK}' \"$?\"").context("the shell has ended")?;
        let deadline = Instant::now() + PATIENCE;
        let mut lines: Vec<String> = Vec::new();
        loop {
            let line = match self.output.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => bail!("`{command}` has not ended in {} s", PATIENCE.as_secs()),
                Err(RecvTimeoutError::Disconnected) => bail!("`{command}` has ended the shell"),
            };
            if let Some(status) = line.strip_prefix(MARK) {
                // The line feed before the mark.
                if lines.last().is_some_and(String::is_empty) {
                    lines.pop();
                }
                return Ok(Answer { lines, status: status.trim().parse().context("an exit status")? });
            }
            lines.push(line);
        }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        // Its jobs too, but for servers, which have left the group.
        if let Ok(group) = i32::try_from(self.process.id()) {
            let _ended_already = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
        let _collected = self.process.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_share_a_shell() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let mut shell = Shell::start(directory.path(), directory.path())?;
        let answer = shell.run("word=there; echo here; echo fault >&2")?;
        assert_eq!((answer.lines, answer.status), (vec!["here".to_owned(), "fault".to_owned()], 0));
        let answer = shell.run("printf $word; false")?;
        assert_eq!((answer.lines, answer.status), (vec!["there".to_owned()], 1));
        assert!(shell.run("exit 3").is_err());
        Ok(())
    }
}
