//! What a mount cannot do, and why: told by what is the case on this machine, not by who mounted.

use std::path::Path;

use serde::Serialize;

use crate::fuse::{Entry, READ_AHEAD_KB};

/// Something that this mount cannot do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Limit {
    /// A word for it; stays the same.
    pub name: &'static str,
    /// What does not work, and what happens instead.
    pub what: String,
    /// Why.
    pub why: String,
    /// What to do about it.
    pub remedy: String,
}

/// What there is to know about a mount.
#[derive(Debug, Clone)]
pub struct Facts<'a> {
    /// The mount itself carries grants.
    pub passthrough: bool,
    /// Grants go over a socket because somebody wanted it so.
    pub socket_asked: bool,
    /// The kernel knows FUSE passthrough.
    pub kernel_has_passthrough: bool,
    /// Where the socket for grants is.
    pub socket: Option<&'a Path>,
    /// User whom the server runs as.
    pub uid: u32,
    /// The server may administer the machine.
    pub privileged: bool,
    /// The server may look into processes of other users.
    pub traces: bool,
    /// The server is in the machine's own user namespace.
    pub initial_namespace: bool,
    /// Size of the aperture that was asked for, and how much of it can be lent, bytes.
    pub aperture_bytes: Option<(u64, u64)>,
    /// What the server may lock, bytes.
    pub lockable_bytes: Option<u64>,
    /// Generic options that were asked for.
    pub generic: &'a [String],
    /// It was asked that others may use the mount.
    pub allow_other: bool,
    /// How the kernel shows the mount.
    pub entry: Option<&'a Entry>,
    /// Read-ahead of the mount, KiB.
    pub read_ahead_kb: Option<u64>,
}

/// All limits of a mount.
pub fn limits(facts: &Facts<'_>) -> Vec<Limit> {
    let all = [
        grants(facts),
        own_user(facts),
        clients(facts),
        locked_memory(facts),
        access(facts),
        namespace(facts),
        options(facts),
        read_ahead(facts),
    ];
    all.into_iter().flatten().collect()
}

fn grants(facts: &Facts<'_>) -> Option<Limit> {
    let socket = facts.socket.filter(|_| !facts.passthrough)?;
    let (why, remedy) = if facts.socket_asked {
        ("it was mounted with -o grants=socket", "mount without -o grants=socket")
    } else if !facts.kernel_has_passthrough {
        ("FUSE passthrough came with Linux 6.9", "use a newer kernel")
    } else {
        ("FUSE passthrough needs CAP_SYS_ADMIN on the machine", "mount as root")
    };
    let directory = socket.parent().unwrap_or(socket).display();
    Some(Limit {
        name: "grants",
        what: format!("grants are memory files handed over on {}: clients that cannot reach it fall back", socket.display()),
        why: why.into(),
        remedy: format!("{remedy}, or show {directory} at the same place in the client's container"),
    })
}

fn own_user(facts: &Facts<'_>) -> Option<Limit> {
    (!facts.passthrough && (facts.uid != 0 || !facts.privileged)).then(|| Limit {
        name: "own-user",
        what: "processes of the server's own user can reopen a granted memory file for writing".into(),
        why: format!("memory files of the server belong to user {}", facts.uid),
        remedy: "mount as root".into(),
    })
}

fn clients(facts: &Facts<'_>) -> Option<Limit> {
    (!facts.traces).then(|| Limit {
        name: "clients",
        what: "processes of other users, and those that may not be traced, fall back".into(),
        why: "without CAP_SYS_PTRACE on the machine the server cannot tell their address spaces".into(),
        remedy: "mount as root".into(),
    })
}

fn locked_memory(facts: &Facts<'_>) -> Option<Limit> {
    let (asked, there) = facts.aperture_bytes?;
    let lockable = facts.lockable_bytes.filter(|_| there < asked)?;
    Some(Limit {
        name: "locked-memory",
        what: format!("{there} bytes of the aperture's {asked} are lent at one time; what does not fit falls back"),
        why: format!("windows are locked memory, of which the server may have {lockable} bytes (RLIMIT_MEMLOCK)"),
        remedy: "raise it (ulimit -l, LimitMEMLOCK=, memlock in limits.conf(5)) and mount again".into(),
    })
}

fn access(facts: &Facts<'_>) -> Option<Limit> {
    facts.entry.filter(|entry| !entry.has("allow_other"))?;
    let (why, remedy) = match facts.allow_other {
        true => ("/etc/fuse.conf does not let users have -o allow_other", "write user_allow_other into /etc/fuse.conf"),
        false => ("it was mounted without -o allow_other", "mount with -o allow_other"),
    };
    Some(Limit {
        name: "access",
        what: format!("only user {} can use the mount", facts.uid),
        why: why.into(),
        remedy: remedy.into(),
    })
}

fn namespace(facts: &Facts<'_>) -> Option<Limit> {
    (!facts.initial_namespace).then(|| Limit {
        name: "namespace",
        what: "processes outside of the server's user namespace cannot use the mount".into(),
        why: "the kernel does not let a filesystem of a namespace serve others".into(),
        remedy: "mount outside of the container, and show the mount inside".into(),
    })
}

fn options(facts: &Facts<'_>) -> Option<Limit> {
    let entry = facts.entry?;
    let lost: Vec<&str> = facts.generic.iter().map(String::as_str).filter(|option| !in_force(option, facts, entry)).collect();
    (!lost.is_empty()).then(|| Limit {
        name: "options",
        what: format!("mount options without effect: {}", lost.join(", ")),
        why: "fusermount3 does not let users have them".into(),
        remedy: "mount as root".into(),
    })
}

/// Whether an option is in force, or its opposite was asked for as well.
fn in_force(option: &str, facts: &Facts<'_>, entry: &Entry) -> bool {
    let opposite = match (option, option.strip_prefix("no")) {
        (_, Some(positive)) => positive.to_owned(),
        ("sync", _) => "async".to_owned(),
        ("async", _) => "sync".to_owned(),
        _ => format!("no{option}"),
    };
    // What is so without an option is shown by the absence of its opposite.
    let shown = match option {
        "dev" | "suid" | "exec" | "atime" | "async" => !entry.has(&opposite),
        _ => entry.has(option),
    };
    shown || facts.generic.contains(&opposite)
}

fn read_ahead(facts: &Facts<'_>) -> Option<Limit> {
    let (entry, now) = (facts.entry?, facts.read_ahead_kb.filter(|now| *now < READ_AHEAD_KB)?);
    let setting = entry.read_ahead_setting();
    Some(Limit {
        name: "read-ahead",
        what: format!("buffered reads come in pieces of {now} KiB, not of {READ_AHEAD_KB}"),
        why: format!("only root writes {setting}"),
        remedy: format!("as root: echo {READ_AHEAD_KB} > {setting}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(options: &[&str]) -> Entry {
        Entry { major: 0, minor: 43, options: options.iter().map(|option| (*option).to_owned()).collect() }
    }

    fn unlimited(entry: &Entry) -> Facts<'_> {
        Facts {
            passthrough: true,
            socket_asked: false,
            kernel_has_passthrough: true,
            socket: None,
            uid: 0,
            privileged: true,
            traces: true,
            initial_namespace: true,
            aperture_bytes: Some((64, 64)),
            lockable_bytes: None,
            generic: &[],
            allow_other: false,
            entry: Some(entry),
            read_ahead_kb: Some(READ_AHEAD_KB),
        }
    }

    fn names(facts: &Facts<'_>) -> Vec<&'static str> {
        limits(facts).iter().map(|limit| limit.name).collect()
    }

    #[test]
    fn each_fact_has_its_limit_and_no_other() {
        let mounted = entry(&["rw", "nosuid", "nodev", "allow_other"]);
        let all = unlimited(&mounted);
        assert_eq!(names(&all), [""; 0]);
        let by_socket = Facts { passthrough: false, socket: Some(Path::new("/run/p/s")), ..all.clone() };
        assert_eq!(names(&by_socket), ["grants"]);
        assert_eq!(names(&Facts { privileged: false, ..by_socket.clone() }), ["grants", "own-user"]);
        assert_eq!(names(&Facts { uid: 1000, ..by_socket }), ["grants", "own-user"], "whatever it may else");
        assert_eq!(names(&Facts { privileged: false, ..all.clone() }), [""; 0], "the mount carries grants");
        assert_eq!(names(&Facts { traces: false, ..all.clone() }), ["clients"]);
        assert_eq!(names(&Facts { initial_namespace: false, ..all.clone() }), ["namespace"]);
        assert_eq!(names(&Facts { read_ahead_kb: Some(128), ..all.clone() }), ["read-ahead"]);
        let bounded = Facts { lockable_bytes: Some(9), ..all };
        assert_eq!(names(&bounded), [""; 0], "all that was asked for is there");
        assert_eq!(names(&Facts { aperture_bytes: Some((64, 8)), ..bounded }), ["locked-memory"]);
    }

    #[test]
    fn a_mount_for_one_user_says_why() {
        let (mounted, why) = (entry(&["rw"]), |facts: &Facts<'_>| limits(facts)[0].why.clone());
        let facts = unlimited(&mounted);
        assert_eq!(names(&facts), ["access"]);
        assert!(why(&facts).contains("without -o allow_other"));
        assert!(why(&Facts { allow_other: true, ..facts }).contains("/etc/fuse.conf"));
    }

    #[test]
    fn options_that_are_not_in_force_are_named() {
        let mounted = entry(&["rw", "nosuid", "nodev", "noatime", "sync", "allow_other"]);
        let lost = |asked: &[&str]| {
            let generic: Vec<String> = asked.iter().map(|option| (*option).to_owned()).collect();
            limits(&Facts { generic: &generic, ..unlimited(&mounted) }).pop().map(|limit| limit.what)
        };
        assert_eq!(lost(&["nodev", "nosuid", "noatime", "sync", "exec"]), None);
        assert_eq!(lost(&["dev", "suid", "noexec"]).as_deref(), Some("mount options without effect: dev, suid, noexec"));
        assert_eq!(lost(&["dirsync", "async"]).as_deref(), Some("mount options without effect: dirsync, async"));
        assert_eq!(lost(&["dev", "nodev", "exec", "async", "sync"]), None, "taken back");
    }

    #[test]
    fn the_reason_for_the_socket_is_the_one_that_holds() {
        let mounted = entry(&["allow_other"]);
        let by_socket = Facts { passthrough: false, socket: Some(Path::new("/run/p/s")), ..unlimited(&mounted) };
        let why = |facts: &Facts<'_>| limits(facts)[0].why.clone();
        assert!(why(&by_socket).contains("CAP_SYS_ADMIN"));
        assert!(limits(&by_socket)[0].remedy.contains("/run/p at"));
        let old = Facts { kernel_has_passthrough: false, ..by_socket };
        assert!(why(&old).contains("6.9"));
        assert!(why(&Facts { socket_asked: true, ..old }).contains("grants=socket"));
    }
}
