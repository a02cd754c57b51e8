//! A client process, as the test holds it.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};
use peerfs_abi::Reason;
use peerfs_p2p::Range;

/// A client process that waits for commands. It is ended when dropped.
pub struct Puppet {
    child: Child,
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

/// What a command gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Numbers, for example bytes by path.
    pub numbers: Vec<u64>,
    /// Bytes read.
    pub payload: Vec<u8>,
}

/// The error number of a command that failed, and its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// As in errno.h; 0 when the library had another error.
    pub errno: i32,
    /// For people.
    pub text: String,
}

/// A segment of a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    /// Where.
    pub range: Range,
    /// `None`: direct.
    pub reason: Option<Reason>,
}

impl Puppet {
    /// Starts the program.
    pub fn start(program: &Path) -> Result<Puppet> {
        let mut child = Command::new(program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("{} cannot be started", program.display()))?;
        let commands = child.stdin.take().context("its input is a pipe")?;
        let answers = BufReader::new(child.stdout.take().context("its output is a pipe")?);
        Ok(Puppet { child, commands: Some(commands), answers })
    }

    /// Has a command carried out; the inner result is the program's.
    pub fn attempt(&mut self, command: &str) -> Result<std::result::Result<Answer, Refused>> {
        let commands = self.commands.as_mut().context("it was told to quit")?;
        writeln!(commands, "{command}")?;
        commands.flush()?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.split_first() {
            Some((&"ok", rest)) => {
                let mut numbers = rest.iter().map(|word| Ok(word.parse()?)).collect::<Result<Vec<u64>>>()?;
                let length = numbers.pop().context("an answer ends with a length")?;
                let mut payload = vec![0; length as usize];
                self.answers.read_exact(&mut payload)?;
                Ok(Ok(Answer { numbers, payload }))
            }
            Some((&"no", [errno, text @ ..])) => Ok(Err(Refused { errno: errno.parse()?, text: text.join(" ") })),
            _ => bail!("the client process died on `{command}` (answer {line:?})"),
        }
    }

    /// As [`Puppet::attempt`], for a command that must succeed.
    pub fn tell(&mut self, command: &str) -> Result<Answer> {
        self.attempt(command)?.map_err(|refused| anyhow::anyhow!("`{command}` failed: {} ({})", refused.text, refused.errno))
    }
}

impl Answer {
    /// Bytes moved directly and by fallback.
    pub fn moved(&self) -> (u64, u64) {
        (self.numbers.first().copied().unwrap_or(0), self.numbers.get(1).copied().unwrap_or(0))
    }

    /// The segments that a map answered.
    pub fn stretches(&self) -> Result<Vec<Stretch>> {
        let text = std::str::from_utf8(&self.payload)?;
        text.split(',').filter(|piece| !piece.is_empty()).map(stretch).collect()
    }
}

fn stretch(text: &str) -> Result<Stretch> {
    let numbers = text.split(':').map(|word| Ok(word.parse()?)).collect::<Result<Vec<u64>>>()?;
    let [start, length, code] = numbers[..] else { bail!("a segment reads {text:?}") };
    let reason = match code {
        0 => None,
        code => Some(Reason::from_code(code as u32).context("a known reason")?),
    };
    Ok(Stretch { range: Range::new(start, length), reason })
}

impl Drop for Puppet {
    fn drop(&mut self) {
        // The end of its input tells it to quit.
        self.commands.take();
        if let Err(error) = self.child.wait() {
            eprintln!("a client process was not waited for: {error}");
        }
    }
}
