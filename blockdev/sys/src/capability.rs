//! What this process may do. Capabilities count where they are asked for: those of a user namespace, which every user can
//! make, are worth nothing to calls that ask for the machine's own.

use std::fs;
use std::os::unix::fs::MetadataExt;

/// A capability by its number; linux/capability.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Capability {
    /// Lock memory without a limit.
    IpcLock = 14,
    /// Look into processes of other users.
    SysPtrace = 19,
    /// Mount, and much else.
    SysAdmin = 21,
}

/// Inode number of the machine's own user namespace (PROC_USER_INIT_INO, linux/proc_ns.h).
const INITIAL_USER_NAMESPACE: u64 = 0xEFFF_FFFD;

impl Capability {
    /// Whether this process has it in its own user namespace. Without procfs it has none.
    pub fn is_held(self) -> bool {
        fs::read_to_string("/proc/self/status").is_ok_and(|status| effective(&status) >> self as u32 & 1 == 1)
    }

    /// Whether this process has it on the machine.
    pub fn is_held_on_machine(self) -> bool {
        in_initial_user_namespace() && self.is_held()
    }
}

/// Whether this process is in no user namespace that somebody made.
pub fn in_initial_user_namespace() -> bool {
    fs::metadata("/proc/self/ns/user").is_ok_and(|namespace| namespace.ino() == INITIAL_USER_NAMESPACE)
}

/// The effective set in a `status` file of proc(5).
fn effective(status: &str) -> u64 {
    let set = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn the_effective_set_is_found() {
        assert_eq!(effective("Name:\tx\nCapEff:\t0000000000204000\n"), 1 << 21 | 1 << 14);
        assert_eq!(effective("CapEff:\tnonsense\n"), 0);
        assert_eq!(effective(""), 0);
    }

    #[test]
    fn root_of_a_namespace_has_nothing_on_the_machine() {
        if std::env::var_os("PEERFS_TEST_INSIDE").is_some() {
            assert!(Capability::SysAdmin.is_held() && !Capability::SysAdmin.is_held_on_machine());
            return;
        }
        if nix::unistd::geteuid().is_root() {
            assert!(Capability::SysAdmin.is_held_on_machine());
        }
        let this = std::env::current_exe().expect("a path");
        let inside = Command::new("unshare")
            .args(["--user", "--map-root-user"])
            .arg(this)
            .args(["--exact", "capability::tests::root_of_a_namespace_has_nothing_on_the_machine"])
            .env("PEERFS_TEST_INSIDE", "1")
            .output()
            .expect("unshare(1)");
        assert!(inside.status.success(), "{}", String::from_utf8_lossy(&inside.stdout));
    }
}
