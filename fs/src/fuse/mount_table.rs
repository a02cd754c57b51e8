//! How the kernel shows a mount, in `mountinfo` of proc(5).

use std::fs;
use std::io;
use std::path::Path;

/// A line of the mount table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Device numbers (`st_dev`).
    pub major: u64,
    /// See `major`.
    pub minor: u64,
    /// Options in force, those of the mount and those of the filesystem.
    pub options: Vec<String>,
}

impl Entry {
    /// An option is in force.
    pub fn has(&self, option: &str) -> bool {
        self.options.iter().any(|found| found == option)
    }

    /// The kernel's setting of read-ahead, KiB: a file of sysfs.
    pub fn read_ahead_setting(&self) -> String {
        format!("/sys/class/bdi/{}:{}/read_ahead_kb", self.major, self.minor)
    }

    /// Ends the connection, whoever still uses the mount: the user who mounted may do that. Where fusectl is not mounted
    /// it ends when the last one is done.
    ///
    /// # Errors
    /// What the file of fusectl answers.
    pub fn abort(&self) -> io::Result<()> {
        match fs::write(format!("/sys/fs/fuse/connections/{}/abort", self.minor), "1") {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// The newest entry of what is mounted on `path`.
pub fn entry(path: &Path) -> Option<Entry> {
    let table = fs::read_to_string("/proc/self/mountinfo").ok()?;
    table.lines().rev().find_map(|line| parse(line, path.as_os_str().as_encoded_bytes()))
}

fn parse(line: &str, mountpoint: &[u8]) -> Option<Entry> {
    let (of_mount, of_filesystem) = line.split_once(" - ")?;
    let mut fields = of_mount.split(' ');
    let (major, minor) = fields.nth(2)?.split_once(':')?;
    if unescape(fields.nth(1)?) != mountpoint {
        return None;
    }
    let options = [fields.next()?, of_filesystem.split(' ').nth(2)?];
    let options = options.into_iter().flat_map(|list| list.split(',')).map(str::to_owned).collect();
    Some(Entry { major: major.parse().ok()?, minor: minor.parse().ok()?, options })
}

/// The mount table writes blanks and backslashes as octal escapes.
fn unescape(field: &str) -> Vec<u8> {
    let bytes = field.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escape = field.get(at + 1..at + 4).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match (bytes[at], escape) {
            (b'\\', Some(byte)) => {
                out.push(byte);
                at += 4;
            }
            (byte, _) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes() {
        assert_eq!(unescape(r"/mnt/a\040b\134c"), b"/mnt/a b\\c");
        assert_eq!(unescape(r"/plain\"), b"/plain\\");
    }

    #[test]
    fn options_of_both_kinds_are_found() {
        let line = r"77 48 0:43 / /a\040b rw,nosuid,relatime shared:1 - fuse.peerfs image:/v rw,sync,allow_other";
        let entry = parse(line, b"/a b").expect("it is there");
        assert_eq!((entry.major, entry.minor), (0, 43));
        assert!(entry.has("nosuid") && entry.has("allow_other") && !entry.has("nodev"));
        assert_eq!(parse(line, b"/a"), None);
        assert_eq!(parse("77 48 0:43", b"/a b"), None);
    }
}
