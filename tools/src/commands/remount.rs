//! `-o remount`: what the kernel keeps of a mount's options changes, the server goes on.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sys::statvfs::{FsFlags, statvfs};
use peerfs_client::File;

use super::server_info;
use crate::busy;
use crate::failure::Usage;

/// Flags that the kernel keeps, the names that set and clear them, and how statvfs(3) shows them.
const FLAGS: [(MsFlags, &str, &str, FsFlags); 5] = [
    (MsFlags::MS_RDONLY, "ro", "rw", FsFlags::ST_RDONLY),
    (MsFlags::MS_NOSUID, "nosuid", "suid", FsFlags::ST_NOSUID),
    (MsFlags::MS_NODEV, "nodev", "dev", FsFlags::ST_NODEV),
    (MsFlags::MS_NOEXEC, "noexec", "exec", FsFlags::ST_NOEXEC),
    (MsFlags::MS_SYNCHRONOUS, "sync", "async", FsFlags::ST_SYNCHRONOUS),
];

/// Names that mount(8) adds from the table of mounts, and that say nothing new.
const KNOWN: [&str; 12] = [
    "remount",
    "relatime",
    "noatime",
    "strictatime",
    "user_id",
    "group_id",
    "default_permissions",
    "allow_other",
    "max_read",
    "blksize",
    "fsname",
    "subtype",
];

/// Some option is `remount`.
pub fn is_asked(lists: &[String]) -> bool {
    names(lists).any(|option| option == "remount")
}

/// Changes what the options say, and leaves the rest.
pub fn run(mountpoint: &Path, lists: &[String]) -> Result<ExitCode> {
    let what = || format!("remount {}", mountpoint.display());
    let server = server_info::info(mountpoint).map_err(anyhow::Error::from).with_context(what)?;
    let flags = flags(current(mountpoint).with_context(what)?, lists)?;
    if flags.contains(MsFlags::MS_RDONLY) {
        // Devices write past the kernel.
        File::open(mountpoint).and_then(|root| root.revoke_mount()).with_context(what)?;
    } else if server["read_only"] == true {
        bail!("{}: its server was started read-only; umount it, and mount it again", what());
    }
    let remount = || mount(None::<&str>, mountpoint, None::<&str>, flags | MsFlags::MS_REMOUNT, None::<&str>);
    busy::patiently(|| Ok(remount()?)).with_context(what)?;
    Ok(ExitCode::SUCCESS)
}

fn current(mountpoint: &Path) -> Result<MsFlags> {
    let shown = statvfs(mountpoint)?.flags();
    Ok(FLAGS.into_iter().filter(|flag| shown.contains(flag.3)).map(|flag| flag.0).collect())
}

fn flags(mut flags: MsFlags, lists: &[String]) -> Result<MsFlags, Usage> {
    for option in names(lists) {
        let name = option.split('=').next().unwrap_or(option);
        match FLAGS.into_iter().find(|flag| option == flag.1 || option == flag.2) {
            Some((flag, set, ..)) => flags.set(flag, option == set),
            None if KNOWN.contains(&name) || name.starts_with("x-") => {}
            None => return Err(Usage(format!("mount option {name}: it cannot be changed while the volume is mounted"))),
        }
    }
    Ok(flags)
}

fn names(lists: &[String]) -> impl Iterator<Item = &str> {
    lists.iter().flat_map(|list| list.split(',')).filter(|option| !option.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_change_what_they_name() {
        let asked = |options: &str| flags(MsFlags::MS_NOSUID | MsFlags::MS_NODEV, &[options.to_owned()]);
        let both = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        assert_eq!(asked("remount,ro").ok(), Some(both | MsFlags::MS_RDONLY));
        assert_eq!(asked("ro,remount,rw,dev,user_id=0,max_read=4096,x-a=b").ok(), Some(MsFlags::MS_NOSUID));
        for fixed in ["remount,cmb=1G", "remount,discard"] {
            assert!(asked(fixed).is_err_and(|error| error.to_string().contains("while the volume is mounted")), "{fixed}");
        }
    }
}
