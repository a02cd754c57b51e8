//! Which process keeps a file locked, by procfs, as far as the caller may see it.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::stat::{major, minor};

/// Longest command line that is shown, in characters.
const SHOWN: usize = 120;

/// A process that shares a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Holder {
    pid: u32,
    command: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} ({})", self.pid, self.command)
    }
}

/// The first process that has a descriptor with a flock(2) lock of the file.
pub(crate) fn holder(path: &Path) -> Option<Holder> {
    let metadata = fs::metadata(path).ok()?;
    let inode = format!("{:02x}:{:02x}:{}", major(metadata.dev()), minor(metadata.dev()), metadata.ino());
    let mut numbers: Vec<u32> =
        fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    numbers.sort_unstable();
    let pid = numbers.into_iter().find(|pid| has_lock(*pid, &inode))?;
    Some(Holder { pid, command: command(pid) })
}

fn has_lock(pid: u32, inode: &str) -> bool {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten();
    descriptors.filter_map(|entry| fs::read_to_string(entry.path()).ok()).any(|about| tells_of_lock(&about, inode))
}

/// A line is `lock:\t1: FLOCK  ADVISORY  WRITE 359 00:13:11691 0 EOF` (proc_pid_fdinfo(5)).
fn tells_of_lock(about: &str, inode: &str) -> bool {
    let mut locks = about.lines().filter_map(|line| line.strip_prefix("lock:"));
    locks.any(|lock| {
        let mut words = lock.split_whitespace().skip(1);
        words.next() == Some("FLOCK") && words.any(|word| word == inode)
    })
}

/// Arguments are the process's own, and a terminal may take them for commands.
fn command(pid: u32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words: Vec<_> = line.split(|byte| *byte == 0).filter(|word| !word.is_empty()).map(String::from_utf8_lossy).collect();
    let shown: String = words.join(" ").replace(char::is_control, "?").chars().take(SHOWN).collect();
    if shown.is_empty() { "?".to_owned() } else { shown }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_recognised() {
        let about = "pos:\t0\nflags:\t02100002\nmnt_id:\t29\nino:\t116\nlock:\t1: FLOCK  ADVISORY  WRITE 359 fd:01:116 0 EOF\n";
        assert!(tells_of_lock(about, "fd:01:116"));
        assert!(!tells_of_lock(about, "fd:01:11"));
        assert!(!tells_of_lock(&about.replace("FLOCK", "POSIX"), "fd:01:116"));
    }
}
