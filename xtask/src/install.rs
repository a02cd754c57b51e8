//! `cargo xtask install`: the program, the client library, its headers and its pkg-config file.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context, Result};

use crate::run;

/// What the package is called by its dependants, and the version that they may ask for.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Builds, and copies what was built below `prefix`.
pub fn install(prefix: &Path) -> Result<()> {
    run("cargo", &["build", "--release", "--package", "peerfs", "--package", "peerfs-client-c"])?;
    let root = crate::root();
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), Into::into).join("release");
    let prefix = std::path::absolute(prefix)?;
    let files = [
        (target.join("peerfs"), "bin/peerfs"),
        (target.join("libpeerfs.so"), "lib/libpeerfs.so.0"),
        (target.join("libpeerfs.a"), "lib/libpeerfs.a"),
        (root.join("p2p/abi/include/peerfs.h"), "include/peerfs.h"),
        (root.join("p2p/client-c/include/peerfs_client.h"), "include/peerfs_client.h"),
    ];
    for (from, to) in files {
        copy(&from, &prefix.join(to))?;
    }
    let link = prefix.join("lib/libpeerfs.so");
    if link.is_symlink() {
        fs::remove_file(&link).with_context(|| format!("replace {}", link.display()))?;
    }
    symlink("libpeerfs.so.0", &link).with_context(|| format!("link {}", link.display()))?;
    let template = fs::read_to_string(root.join("p2p/client-c/peerfs.pc.in"))?;
    let text = template.replace("@prefix@", &prefix.to_string_lossy()).replace("@version@", VERSION);
    let description = prefix.join("lib/pkgconfig/peerfs.pc");
    make_room(&description)?;
    fs::write(&description, text).with_context(|| format!("write {}", description.display()))
}

/// The old file goes first: a program that runs, or has it open, keeps it.
fn copy(from: &Path, to: &Path) -> Result<()> {
    make_room(to)?;
    if to.exists() {
        fs::remove_file(to).with_context(|| format!("replace {}", to.display()))?;
    }
    fs::copy(from, to).with_context(|| format!("copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

fn make_room(path: &Path) -> Result<()> {
    let folder = path.parent().context("a file is in a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))
}
