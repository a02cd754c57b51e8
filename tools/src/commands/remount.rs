//! `-o remount`: what the kernel keeps of a mount's options changes, the server goes on.

use std::fs::metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::statvfs::{FsFlags, statvfs};
use peerfs_client::File;

use super::server_info;
use crate::busy;
use crate::failure::Usage;
use crate::mount_options;

/// Flags that the kernel keeps, the names that set and clear them, and how statvfs(3) shows them.
const FLAGS: [(MsFlags, &str, &str, FsFlags); 5] = [
    (MsFlags::MS_RDONLY, "ro", "rw", FsFlags::ST_RDONLY),
    (MsFlags::MS_NOSUID, "nosuid", "suid", FsFlags::ST_NOSUID),
    (MsFlags::MS_NODEV, "nodev", "dev", FsFlags::ST_NODEV),
    (MsFlags::MS_NOEXEC, "noexec", "exec", FsFlags::ST_NOEXEC),
    (MsFlags::MS_SYNCHRONOUS, "sync", "async", FsFlags::ST_SYNCHRONOUS),
];

/// Names that mount(8) adds from the table of mounts; `user=` is of fstab.
const OF_THE_TABLE: [&str; 6] = ["user_id", "group_id", "max_read", "blksize", "subtype", "user"];

/// Some option is `remount`.
pub fn is_asked(lists: &[String]) -> bool {
    names(lists).any(|option| option == "remount")
}

/// Changes what the options say. mount(8) adds those of fstab, of which what only the server knows stays as it is.
pub fn run(mountpoint: &Path, lists: &[String]) -> Result<ExitCode> {
    let what = || format!("remount {}", mountpoint.display());
    let server = server_info::info(mountpoint).map_err(anyhow::Error::from).with_context(what)?;
    ensure!(is_mount_point(mountpoint).with_context(what)?, "{}: not a mount point itself", what());
    let kept = if is_merged_with_table(lists) { MsFlags::empty() } else { current(mountpoint).with_context(what)? };
    let flags = flags(kept, lists)?;
    let read_only = flags.contains(MsFlags::MS_RDONLY);
    if !read_only && server["read_only"] == true {
        bail!("{}: its server was started read-only; umount it, and mount it again", what());
    }
    if read_only && server["pins"].as_u64().unwrap_or(0) > 0 {
        bail!("{}: devices hold pins, which may be written; end them, or take them: peerfs revoke --all --pins", what());
    }
    let remount = || mount(None::<&str>, mountpoint, None::<&str>, flags | MsFlags::MS_REMOUNT, None::<&str>);
    busy::patiently(|| Ok(remount()?)).map_err(only_root).with_context(what)?;
    if read_only {
        // Devices write past the kernel. Nobody can ask for a new mapping for writing any more.
        File::open(mountpoint).and_then(|root| root.revoke_mount()).with_context(what)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// mount(8) has merged what it was given with the table of mounts. It then names all flags that are to be set, and none
/// that are to be cleared: `suid` arrives as the absence of `nosuid`. From fstab it names what stands there, so that what
/// is left out stays as it is.
fn is_merged_with_table(lists: &[String]) -> bool {
    names(lists).any(|option| option.starts_with("user_id="))
}

fn only_root(error: io::Error) -> anyhow::Error {
    match error.raw_os_error() {
        Some(code) if code == Errno::EPERM as i32 => {
            anyhow!("only root changes the options of a mount; umount it, and mount it again")
        }
        _ => error.into(),
    }
}

fn is_mount_point(path: &Path) -> Result<bool> {
    Ok(metadata(path)?.dev() != metadata(path.join(".."))?.dev())
}

fn current(mountpoint: &Path) -> Result<MsFlags> {
    let shown = statvfs(mountpoint)?.flags();
    Ok(FLAGS.into_iter().filter(|flag| shown.contains(flag.3)).map(|flag| flag.0).collect())
}

fn flags(mut flags: MsFlags, lists: &[String]) -> Result<MsFlags, Usage> {
    let mut others = Vec::new();
    for option in names(lists) {
        let name = option.split('=').next().unwrap_or(option);
        match FLAGS.into_iter().find(|flag| option == flag.1 || option == flag.2) {
            Some((flag, set, ..)) => flags.set(flag, option == set),
            None if OF_THE_TABLE.contains(&name) => {}
            None => others.push(option.to_owned()),
        }
    }
    // They are known, at least.
    mount_options::parse(&others)?;
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
        // As mount(8) merges a line of fstab.
        assert_eq!(asked("cmb=256M,noatime,nofail,_netdev,user=root,remount,rw").ok(), Some(both));
        assert!(asked("remount,frobnicate").is_err());
    }

    #[test]
    fn what_mount_8_leaves_out_of_the_table_is_cleared() {
        assert!(is_merged_with_table(&["rw,nodev,relatime,remount,user_id=0,group_id=0".into()]));
        assert!(!is_merged_with_table(&["cmb=256M,noatime,user=root,remount,rw".into()]));
    }
}
