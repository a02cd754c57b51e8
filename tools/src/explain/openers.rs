//! Which processes have a file open for writing, by procfs: what fuser(1) shows, as far as the caller may see it.
//!
//! Unlike fuser(1), no descriptor of another process is followed: it may lead to a mount that does not answer.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::stat::makedev;

/// A process that has a file open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opener {
    /// Its number.
    pub pid: u32,
    /// The name of its program, without control characters.
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
    fs::read(format!("/proc/{pid}/comm")).map_or_else(|_| "?".to_owned(), |name| printable(&name))
}

/// A process chooses its name, and a terminal may take it for commands.
fn printable(name: &[u8]) -> String {
    let name = String::from_utf8_lossy(name.strip_suffix(b"\n").unwrap_or(name)).into_owned();
    name.replace(char::is_control, "?")
}

fn writes(pid: u32, device: u64, inode: u64) -> bool {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten();
    let mut opened = descriptors.filter_map(|entry| Descriptor::parse(&fs::read_to_string(entry.path()).ok()?));
    opened.any(|opened| opened.writable && opened.inode == inode && device_of(pid, opened.mount) == Some(device))
}

/// What procfs tells of a descriptor (proc_pid_fdinfo(5)).
#[derive(Debug, PartialEq, Eq)]
struct Descriptor {
    writable: bool,
    /// Number of the mount, in the table of the process.
    mount: u64,
    inode: u64,
}

impl Descriptor {
    /// `None` before Linux 5.14, which does not tell inode numbers.
    fn parse(about: &str) -> Option<Descriptor> {
        const ACCESS: u32 = 3;
        let value = |name: &str| about.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        Some(Descriptor {
            writable: u32::from_str_radix(value("flags:")?, 8).ok()? & ACCESS != 0,
            mount: value("mnt_id:")?.parse().ok()?,
            inode: value("ino:")?.parse().ok()?,
        })
    }
}

/// The device number of a mount that a process sees.
fn device_of(pid: u32, mount: u64) -> Option<u64> {
    device_in(&fs::read_to_string(format!("/proc/{pid}/mountinfo")).ok()?, mount)
}

/// The same from the table of mounts (proc_pid_mountinfo(5)): its number, that of its parent, `MAJOR:MINOR`.
fn device_in(table: &str, mount: u64) -> Option<u64> {
    let device = table.lines().find_map(|line| {
        let mut fields = line.split(' ');
        (fields.next()?.parse() == Ok(mount)).then(|| fields.nth(1))?
    });
    let (major, minor) = device?.split_once(':')?;
    Some(makedev(major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_told_apart_without_following_them() {
        let parsed = |flags| Descriptor::parse(&format!("pos:\t0\nflags:\t{flags}\nmnt_id:\t417\nino:\t3\n"));
        for (flags, writable) in [("0100000", false), ("0100001", true), ("02100002", true)] {
            assert_eq!(parsed(flags), Some(Descriptor { writable, mount: 417, inode: 3 }), "{flags}");
        }
        assert_eq!(Descriptor::parse("pos:\t0\nflags:\t02\nmnt_id:\t417\n"), None, "of an older kernel");
        let table = "41 31 0:38 / /sys rw - sysfs sysfs rw\n417 31 259:7 / /mnt/peer rw - fuse.peerfs peerfs rw\n";
        assert_eq!((device_in(table, 417), device_in(table, 31)), (Some(makedev(259, 7)), None));
    }

    #[test]
    fn a_name_is_no_command_for_a_terminal() {
        assert_eq!(printable(b"python3\n"), "python3");
        assert_eq!(printable(b"a\x1b[2J\nb\xff\xc2\x9b"), "a?[2J?b\u{fffd}?");
    }
}
