//! What the kernel has mounted and swaps to, so that a namespace's part in it is found.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use super::host::text;
use super::{Host, PciError};

/// A mount of our mount namespace.
struct Mount {
    /// `major:minor` of the device, or of nothing for filesystems on several devices.
    device: String,
    /// What mount(8) was given: for those the devices, separated by colons.
    source: String,
    mount_point: String,
}

/// Mounts and swap areas at one time.
pub(super) struct Mounts {
    mounts: Vec<Mount>,
    swaps: Vec<String>,
}

impl Mounts {
    /// Reads both tables.
    pub(super) fn read(host: &Host) -> Result<Self, PciError> {
        let mounts = text(&host.proc("self/mountinfo"))?.lines().filter_map(mount).collect();
        // Not there if the kernel cannot swap.
        let swaps = super::host::text_if_there(&host.proc("swaps"))?.unwrap_or_default();
        let swaps = swaps.lines().skip(1).filter_map(|line| line.split_whitespace().next());
        Ok(Mounts { mounts, swaps: swaps.map(unescape).collect() })
    }

    /// Where a block device is mounted, given its name and `major:minor`.
    pub(super) fn mount_points<'a>(&'a self, block: &'a str, device: &'a str) -> impl Iterator<Item = &'a str> {
        let of = move |mount: &&Mount| mount.device == device || mount.source.split(':').any(|part| names(part, block));
        self.mounts.iter().filter(of).map(|mount| mount.mount_point.as_str())
    }

    /// A block device is used as swap space.
    pub(super) fn swaps_to(&self, block: &str) -> bool {
        self.swaps.iter().any(|path| names(path, block))
    }
}

/// The path of a device node is that of this block device.
fn names(path: &str, block: &str) -> bool {
    path.strip_prefix("/dev/").is_some_and(|name| name == block)
}

/// A line of mountinfo, proc_pid_mountinfo(5): fields 3 and 5, and behind the optional fields and a dash the second.
fn mount(line: &str) -> Option<Mount> {
    let (fields, behind) = line.split_once(" - ")?;
    let mut fields = fields.split(' ').skip(2);
    let device = fields.next()?.to_owned();
    let mount_point = unescape(fields.nth(1)?);
    let source = unescape(behind.split(' ').nth(1)?);
    Some(Mount { device, source, mount_point })
}

/// Spaces, tabs, newlines and backslashes are written as three octal digits.
fn unescape(field: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = field.as_bytes();
    while let Some((&first, behind)) = rest.split_first() {
        let code = behind.get(..3).filter(|_| first == b'\\').and_then(octal);
        bytes.push(code.unwrap_or(first));
        rest = if code.is_some() { &behind[3..] } else { behind };
    }
    OsString::from_vec(bytes).to_string_lossy().into_owned()
}

fn octal(digits: &[u8]) -> Option<u8> {
    std::str::from_utf8(digits).ok().and_then(|digits| u8::from_str_radix(digits, 8).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_with_and_without_optional_fields() {
        let line = "36 35 259:1 /sub /mnt/a\\040b rw,noatime master:1 shared:2 - ext4 /dev/nvme0n1p1 rw,errors=continue";
        let seen = mount(line).expect("a mount");
        assert_eq!(
            (seen.device.as_str(), seen.mount_point.as_str(), seen.source.as_str()),
            ("259:1", "/mnt/a b", "/dev/nvme0n1p1")
        );
        assert_eq!(mount("22 27 0:21 / /proc rw - proc proc rw").expect("a mount").source, "proc");
        assert!(mount("22 27 0:21 / /proc rw").is_none() && mount("").is_none());
    }

    #[test]
    fn only_octal_codes_are_unescaped() {
        assert_eq!(unescape("a\\134\\040\\04\\999\\"), "a\\ \\04\\999\\");
    }
}
