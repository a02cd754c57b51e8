//! `cargo xtask install`: the program with its manual, and the client library with headers and pkg-config file.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::run;
use crate::tree::{DATA, PROGRAM, Tree};

/// What the package is called by its dependants, and the version that they may ask for.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The shared library. Its number changes with the binary interface.
pub const SHARED_LIBRARY: &str = "libpeerfs.so.0";
/// Completions: shell, and where it looks for them below a prefix.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "share/bash-completion/completions/peerfs"),
    ("fish", "share/fish/vendor_completions.d/peerfs.fish"),
    ("zsh", "share/zsh/vendor-completions/_peerfs"),
];

/// Where things go below the tree's root.
pub struct Layout<'a> {
    /// Directory of the files themselves, and a slash; empty for the root.
    pub prefix: &'a str,
    /// Directory that programs will find them in.
    pub final_prefix: &'a str,
    /// Libraries, below the prefix.
    pub libraries: &'a str,
}

/// Builds, and copies what was built below `prefix`.
pub fn install(prefix: &Path) -> Result<()> {
    build()?;
    let tree = Tree::new(prefix)?;
    let final_prefix = tree.path("").to_string_lossy().trim_end_matches('/').to_owned();
    place(&tree, &Layout { prefix: "", final_prefix: &final_prefix, libraries: "lib" })
}

/// Builds what is installed.
pub fn build() -> Result<()> {
    run("cargo", &["build", "--release", "--package", "peerfs", "--package", "peerfs-client-c"])
}

/// Copies what was built.
pub fn place(tree: &Tree, layout: &Layout) -> Result<()> {
    let root = crate::root();
    let at = |name: &str| format!("{}{name}", layout.prefix);
    let library = |name: &str| format!("{}{}/{name}", layout.prefix, layout.libraries);
    tree.copy(&built("peerfs"), &at("bin/peerfs"), PROGRAM)?;
    tree.link("../bin/peerfs", &at("sbin/mount.fuse.peerfs"))?;
    tree.copy(&built("libpeerfs.so"), &library(SHARED_LIBRARY), DATA)?;
    tree.link(SHARED_LIBRARY, &library("libpeerfs.so"))?;
    tree.copy(&built("libpeerfs.a"), &library("libpeerfs.a"), DATA)?;
    tree.copy(&root.join("p2p/abi/include/peerfs.h"), &at("include/peerfs.h"), DATA)?;
    tree.copy(&root.join("p2p/client-c/include/peerfs_client.h"), &at("include/peerfs_client.h"), DATA)?;
    let template = fs::read_to_string(root.join("p2p/client-c/peerfs.pc.in"))?;
    let description = template.replace("@prefix@", layout.final_prefix).replace("@libraries@", layout.libraries);
    tree.write(&library("pkgconfig/peerfs.pc"), description.replace("@version@", VERSION))?;
    generate(&["man", &tree.directory(&at("share/man/man1"))?.to_string_lossy()])?;
    move_helper_page(tree, layout)?;
    COMPLETIONS.iter().try_for_each(|(shell, name)| tree.write(&at(name), generate(&["completions", shell])?))
}

/// It is of another section.
fn move_helper_page(tree: &Tree, layout: &Layout) -> Result<()> {
    let page = tree.path(&format!("{}share/man/man1/mount.fuse.peerfs.8", layout.prefix));
    tree.copy(&page, &format!("{}share/man/man8/mount.fuse.peerfs.8", layout.prefix), DATA)?;
    fs::remove_file(&page).with_context(|| page.display().to_string())
}

/// Something that the release build has made.
fn built(name: &str) -> PathBuf {
    target_directory().join("release").join(name)
}

/// Where cargo builds.
pub fn target_directory() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| crate::root().join("target"), Into::into)
}

/// What `peerfs generate` prints.
fn generate(arguments: &[&str]) -> Result<Vec<u8>> {
    let output = Command::new(built("peerfs")).arg("generate").args(arguments).output()?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "peerfs generate {}: {complaint}", arguments.join(" "));
    Ok(output.stdout)
}
