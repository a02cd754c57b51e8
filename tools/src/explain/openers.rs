//! Which processes have a file open for writing, by procfs: what fuser(1) shows, as far as the caller may see it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// A process that has a file open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opener {
    /// Its number.
    pub pid: u32,
    /// The name of its program.
    pub name: String,
}

/// The processes other than this one that have the file open for writing.
pub fn writers(path: &Path) -> Vec<Opener> {
    let Ok(file) = fs::metadata(path) else { return Vec::new() };
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let writing = numbers.filter(|pid| *pid != std::process::id() && writes(*pid, file.dev(), file.ino()));
    let mut found: Vec<Opener> = writing.map(|pid| Opener { pid, name: name(pid) }).collect();
    found.sort_by_key(|opener| opener.pid);
    found
}

fn name(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).map_or_else(|_| "?".to_owned(), |name| name.trim().to_owned())
}

fn writes(pid: u32, device: u64, inode: u64) -> bool {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    descriptors.into_iter().any(|entry| {
        let same = fs::metadata(entry.path()).is_ok_and(|opened| opened.dev() == device && opened.ino() == inode);
        same && entry.file_name().to_str().is_some_and(|descriptor| open_for_writing(pid, descriptor))
    })
}

fn open_for_writing(pid: u32, descriptor: &str) -> bool {
    const ACCESS: u32 = 3;
    let about = fs::read_to_string(format!("/proc/{pid}/fdinfo/{descriptor}")).unwrap_or_default();
    let flags = about.lines().find_map(|line| line.strip_prefix("flags:")).map(str::trim);
    flags.and_then(|octal| u32::from_str_radix(octal, 8).ok()).is_some_and(|flags| flags & ACCESS != 0)
}
