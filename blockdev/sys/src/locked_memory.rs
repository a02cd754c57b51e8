//! How much memory this process may lock, which is what registering it with io_uring counts as.

use std::fs;

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

use crate::Capability;

/// What RLIMIT_MEMLOCK leaves this process, bytes; `None`: it has no bound. The limit holds for all processes of a user
/// together, so what others lock comes off, and is not known here.
pub fn lockable_bytes() -> Option<u64> {
    let (limit, _) = getrlimit(Resource::RLIMIT_MEMLOCK).ok()?;
    if limit == RLIM_INFINITY || Capability::IpcLock.is_held_on_machine() {
        return None;
    }
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    Some(limit.saturating_sub(pinned(&status)))
}

/// Pages that the kernel keeps for this process, in a `status` file of proc(5), bytes.
fn pinned(status: &str) -> u64 {
    let value = status.lines().find_map(|line| line.strip_prefix("VmPin:"));
    let kilobytes = value.and_then(|value| value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pinned_pages_are_found() {
        assert_eq!(pinned("VmLck:\t       8 kB\nVmPin:\t    2048 kB\n"), 2 << 20);
        assert_eq!(pinned("VmPin:\t nonsense\n"), 0);
    }
}
