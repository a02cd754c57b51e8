//! How the program ends: exit codes, and one line on stderr for every failure.

use std::io;
use std::process::ExitCode;

/// Exit codes other than 0.
#[derive(Debug, Clone, Copy)]
pub struct Codes {
    /// What was asked for was not done.
    pub failure: u8,
    /// The command line is wrong.
    pub usage: u8,
}

/// Those of every `peerfs` command.
pub const COMMAND: Codes = Codes { failure: 1, usage: 2 };

/// The command line itself is wrong.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// The failure was reported already; only the exit code is left to give.
#[derive(Debug, thiserror::Error)]
#[error("failed")]
pub struct Reported;

/// Turns an outcome into an exit code, and a failure into its line.
pub fn exit_code(outcome: anyhow::Result<ExitCode>, codes: Codes) -> ExitCode {
    let error = match outcome {
        Ok(code) => return code,
        Err(error) => error,
    };
    if error.is::<Reported>() {
        return ExitCode::from(codes.failure);
    }
    if reader_left(&error) {
        return ExitCode::SUCCESS;
    }
    if let Some(Usage(line)) = error.downcast_ref::<Usage>() {
        return usage(line, codes);
    }
    eprintln!("peerfs: {}", line(&error));
    ExitCode::from(codes.failure)
}

/// Reports a wrong command line.
pub fn usage(line: &str, codes: Codes) -> ExitCode {
    eprintln!("peerfs: {line}; see peerfs --help");
    ExitCode::from(codes.usage)
}

/// Whoever read our output (`head`, a pager) has seen enough.
fn reader_left(error: &anyhow::Error) -> bool {
    let stdout = error.downcast_ref::<io::Error>();
    stdout.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// The chain of causes on one line, without repeating what an outer message already says.
pub fn line(error: &anyhow::Error) -> String {
    let mut line = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        if line.contains(&text) {
            continue;
        }
        if !line.is_empty() {
            line.push_str(": ");
        }
        line.push_str(&text);
    }
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn causes_are_joined_once_and_on_one_line() {
        let error = anyhow!("No such file").context("cannot open x: No such file").context("mkfs\nimage:x");
        assert_eq!(line(&error), "mkfs image:x: cannot open x: No such file");
    }
}
