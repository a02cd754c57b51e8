//! What tests of endpoints need besides commands: HTTP by hand, and commands that go on running.

use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::net::TcpStream;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// An answer of an HTTP server.
pub struct Answer {
    /// Its number.
    pub status: u16,
    /// Status line and header fields.
    pub head: String,
    /// Its content.
    pub body: String,
}

/// Sends what a client might, and reads to the end.
pub fn http(address: &str, request: &str) -> Answer {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.write_all(request.as_bytes()).expect("sent");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("an answer");
    let (head, body) = text.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    Answer { status, head: head.to_owned(), body: body.to_owned() }
}

/// Asks for a target as a browser does that was given the address.
pub fn get(address: &str, target: &str) -> Answer {
    http(address, &format!("GET {target} HTTP/1.1\r\nHost: {address}\r\n\r\n"))
}

/// A `peerfs` command that goes on running; it is killed at the end.
pub struct Running {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Running {
    /// Starts it.
    pub fn new(arguments: &[&str]) -> Running {
        Running::start(Command::new(env!("CARGO_BIN_EXE_peerfs")).args(arguments))
    }

    /// Starts a command that is more than arguments.
    pub fn start(command: &mut Command) -> Running {
        let mut child = command
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the binary under test starts");
        let stdout = child.stdout.take().expect("piped");
        Running { child, lines: BufReader::new(stdout).lines() }
    }

    /// Waits until it says a line that starts so; answers the line.
    pub fn says(&mut self, start: &str) -> String {
        let line = self.lines.by_ref().map_while(Result::ok).find(|line| line.starts_with(start));
        line.unwrap_or_else(|| panic!("it ended without a line that starts with `{start}`"))
    }

    /// Waits until it has ended.
    pub fn ends(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("our child") {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Number of the process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // One that has ended is no error.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
