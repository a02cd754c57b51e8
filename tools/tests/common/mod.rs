//! Runs the real binary.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

/// What a command said.
pub struct Outcome {
    /// Exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// Its output.
    pub stdout: String,
    /// Its complaints.
    pub stderr: String,
}

/// Runs `peerfs` with these arguments.
pub fn peerfs(arguments: &[&str]) -> Outcome {
    let output: Output = Command::new(env!("CARGO_BIN_EXE_peerfs"))
        .args(arguments)
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .output()
        .expect("the binary under test starts");
    Outcome {
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Runs a command that must succeed; answers its output.
pub fn succeed(arguments: &[&str]) -> String {
    let outcome = peerfs(arguments);
    assert_eq!(outcome.code, Some(0), "peerfs {arguments:?}: {}", outcome.stderr);
    outcome.stdout
}

/// Runs a command that must fail with this code and one line on stderr; answers the line.
pub fn fail(code: i32, arguments: &[&str]) -> String {
    let outcome = peerfs(arguments);
    assert_eq!(outcome.code, Some(code), "peerfs {arguments:?}: {}{}", outcome.stdout, outcome.stderr);
    let line = outcome.stderr.strip_suffix('\n').unwrap_or_default();
    assert!(line.starts_with("peerfs: ") && !line.contains('\n'), "peerfs {arguments:?}: not one line: {}", outcome.stderr);
    line.to_owned()
}

/// A temporary directory with a mount point. What is mounted there is unmounted at the end.
pub struct Scratch {
    directory: TempDir,
}

impl Scratch {
    /// Makes the directories.
    pub fn new() -> Scratch {
        let directory = tempfile::Builder::new().prefix("peerfs-cli-").tempdir().expect("a temporary directory");
        std::fs::create_dir(directory.path().join("mnt")).expect("a mount point");
        Scratch { directory }
    }

    /// A path in the directory.
    pub fn join(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The same as text.
    pub fn text(&self, name: &str) -> String {
        path_text(&self.join(name))
    }

    /// The mount point.
    pub fn mnt(&self) -> String {
        self.text("mnt")
    }
}

/// A path as an argument.
pub fn path_text(path: &Path) -> String {
    path.to_str().expect("temporary directories have plain names").to_owned()
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mounted = |line: &str| line.split(' ').nth(4) == Some(self.mnt().as_str());
        for _ in table.lines().filter(|line| mounted(line)) {
            eprintln!("cleaning up: {}", peerfs(&["umount", "--force", &self.mnt()]).stderr);
        }
    }
}
