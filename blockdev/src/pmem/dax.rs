//! Device-dax: persistent memory as a character device, whose size sysfs knows.
//!
//! Source: Documentation/ABI/testing/sysfs-bus-dax of Linux.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::stat::{major, minor};

/// Bytes of an open device-dax device that can be mapped, or what is wrong with it. A mapping starts at its first byte
/// and must end at a multiple of its alignment.
pub(super) fn size_bytes(file: &File) -> Result<u64, String> {
    let number = file.metadata().map_err(|err| format!("cannot be examined: {err}"))?.rdev();
    let place = PathBuf::from(format!("/sys/dev/char/{}:{}", major(number), minor(number)));
    size_in(&place)
}

/// The same, of the device that sysfs describes at `place`.
fn size_in(place: &Path) -> Result<u64, String> {
    let subsystem = fs::read_link(place.join("subsystem")).unwrap_or_default();
    if subsystem.file_name().is_none_or(|name| name != "dax") {
        return Err("is a character device, but not one of persistent memory (/dev/daxX.Y)".into());
    }
    let size = attribute(&place.join("size"))?;
    // Older kernels do not tell; their devices have whole huge pages.
    let align = attribute(&place.join("align")).unwrap_or(2 << 20);
    match size.checked_rem(align) {
        Some(0) if size > 0 => Ok(size),
        Some(rest) if size > rest => Ok(size - rest),
        _ => Err(format!("has {size} bytes, less than its alignment of {align}: give its namespace memory with ndctl")),
    }
}

/// A number, decimal or with 0x.
fn attribute(path: &Path) -> Result<u64, String> {
    let text = fs::read_to_string(path).map_err(|err| format!("{} cannot be read: {err}", path.display()))?;
    let text = text.trim();
    let number = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    number.map_err(|_| format!("{} is no number: {text}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn device(subsystem: &str, size: &str, align: Option<&str>) -> Result<u64, String> {
        let place = tempfile::tempdir().expect("a folder");
        symlink(format!("../../{subsystem}"), place.path().join("subsystem")).expect("a link");
        fs::write(place.path().join("size"), size).expect("a file");
        if let Some(align) = align {
            fs::write(place.path().join("align"), align).expect("a file");
        }
        size_in(place.path())
    }

    #[test]
    fn the_size_ends_where_a_mapping_may() {
        assert_eq!(device("bus/dax", "4194304\n", Some("2097152\n")), Ok(4 << 20));
        assert_eq!(device("bus/dax", "4198400\n", Some("4096\n")), Ok(4_198_400));
        assert_eq!(device("bus/dax", "4198400\n", Some("0x200000\n")), Ok(4 << 20));
        assert_eq!(device("class/dax", "6291456\n", None), Ok(6 << 20));
    }

    #[test]
    fn what_is_no_such_device_says_so() {
        let refused = |subsystem, size, align| device(subsystem, size, Some(align)).expect_err("refused");
        assert!(refused("class/mem", "4194304", "4096").contains("not one of persistent memory"));
        assert!(refused("bus/dax", "lots", "4096").contains("no number"));
        for (size, align) in [("0", "4096"), ("4096", "2097152"), ("4096", "0")] {
            assert!(refused("bus/dax", size, align).contains("ndctl"), "{size} {align}");
        }
        assert!(size_bytes(&File::open("/dev/null").expect("open")).is_err_and(|why| why.contains("/dev/daxX.Y")));
    }
}
