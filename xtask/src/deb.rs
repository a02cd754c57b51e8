//! `cargo xtask deb`: the Debian package. dpkg's own tools make it; nothing else is needed.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::install::{self, Layout, SHARED_LIBRARY, VERSION};
use crate::tree::{DATA, Tree};
use crate::{output_of, root, run};

/// The packaging of a version.
const REVISION: &str = "1";
const DOCUMENTS: &str = "usr/share/doc/peerfs";

/// Builds, and makes `target/debian/peerfs_VERSION_ARCHITECTURE.deb`.
pub fn deb() -> Result<()> {
    install::build()?;
    let directory = install::target_directory().join("debian");
    let staging = directory.join("peerfs");
    if staging.exists() {
        fs::remove_dir_all(&staging).with_context(|| staging.display().to_string())?;
    }
    let tree = Tree::new(&staging)?;
    let architecture = output_of("dpkg", &["--print-architecture"])?;
    let libraries = format!("lib/{}", output_of("dpkg-architecture", &["-qDEB_HOST_MULTIARCH"])?);
    install::place(&tree, &Layout { prefix: "usr/", final_prefix: "/usr", libraries: &libraries })?;
    tree.copy(&root().join("tools/dist/peerfs@.service"), "lib/systemd/system/peerfs@.service", DATA)?;
    add_documents(&tree)?;
    strip(&tree, &libraries)?;
    compress_pages(&tree)?;
    let depends = dependencies(&tree, &libraries, &directory)?;
    add_control(&tree, &architecture, &depends)?;
    let package = directory.join(format!("peerfs_{VERSION}-{REVISION}_{architecture}.deb"));
    run("dpkg-deb", &["--root-owner-group", "--build", &text(&staging), &text(&package)])
}

fn add_documents(tree: &Tree) -> Result<()> {
    let at = |name: &str| format!("{DOCUMENTS}/{name}");
    tree.copy(&root().join("tools/dist/copyright"), &at("copyright"), DATA)?;
    for name in ["README.md", "SEMANTICS.md"] {
        tree.copy(&root().join(name), &at(name), DATA)?;
    }
    for (folder, to) in [("docs", "docs/"), ("p2p/client-c/examples", "examples/")] {
        for entry in fs::read_dir(root().join(folder)).with_context(|| folder.to_owned())? {
            let path = entry?.path();
            tree.copy(&path, &at(&format!("{to}{}", name_of(&path)?)), DATA)?;
        }
    }
    tree.copy(&root().join("CHANGELOG.md"), &at("changelog"), DATA)?;
    tree.write(&at("changelog.Debian"), changelog()?)?;
    gzip(&tree.path(&at("changelog")))?;
    gzip(&tree.path(&at("changelog.Debian")))?;
    tree.write(&at("crates.txt"), crates()?)
}

/// With the date of the sources.
fn changelog() -> Result<String> {
    let date = match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(seconds) => output_of("date", &["-u", "-R", "-d", &format!("@{seconds}")])?,
        Err(_) => output_of("git", &["log", "-1", "--format=%cD"])?,
    };
    let maintainer = maintainer();
    Ok(format!("peerfs ({VERSION}-{REVISION}) unstable; urgency=medium\n\n  * See changelog.gz.\n\n -- {maintainer}  {date}\n"))
}

/// As Debian's tools are told it.
fn maintainer() -> String {
    let told = |variable, default: &str| std::env::var(variable).unwrap_or_else(|_| default.to_owned());
    format!("{} <{}>", told("DEBFULLNAME", "The peerfs developers"), told("DEBEMAIL", "peerfs@localhost.localdomain"))
}

/// The crates that are linked in, a line each, with their licences.
fn crates() -> Result<String> {
    let tree = ["tree", "--package", "peerfs", "--package", "peerfs-client-c", "--edges", "normal", "--prefix", "none"];
    let lines = output_of("cargo", &[&tree[..], &["--format", "{p}: {l}"]].concat())?;
    // Ours have a path.
    let mut foreign: Vec<&str> = lines.lines().filter(|line| !line.is_empty() && !line.contains(" (")).collect();
    foreign.sort_unstable();
    foreign.dedup();
    Ok(foreign.join("\n") + "\n")
}

fn strip(tree: &Tree, libraries: &str) -> Result<()> {
    run("strip", &["--strip-all", &text(&tree.path("usr/bin/peerfs"))])?;
    run("strip", &["--strip-unneeded", &text(&tree.path(&format!("usr/{libraries}/{SHARED_LIBRARY}")))])?;
    run("strip", &["--strip-debug", &text(&tree.path(&format!("usr/{libraries}/libpeerfs.a")))])
}

fn compress_pages(tree: &Tree) -> Result<()> {
    for section in ["usr/share/man/man1", "usr/share/man/man8"] {
        for entry in fs::read_dir(tree.path(section))? {
            gzip(&entry?.path())?;
        }
    }
    Ok(())
}

/// Packages with the shared libraries that ours need.
fn dependencies(tree: &Tree, libraries: &str, directory: &Path) -> Result<String> {
    // dpkg-shlibdeps wants to be called in a source package.
    fs::create_dir_all(directory.join("debian"))?;
    fs::write(directory.join("debian/control"), "Source: peerfs\n\nPackage: peerfs\nArchitecture: any\n")?;
    let library = tree.path(&format!("usr/{libraries}/{SHARED_LIBRARY}"));
    let output = Command::new("dpkg-shlibdeps")
        .args(["-O", "-e"])
        .arg(tree.path("usr/bin/peerfs"))
        .arg("-e")
        .arg(library)
        .current_dir(directory)
        .output()
        .context("dpkg-shlibdeps cannot be started; is dpkg-dev installed?")?;
    ensure!(output.status.success(), "dpkg-shlibdeps: {}", String::from_utf8_lossy(&output.stderr));
    let line = String::from_utf8(output.stdout)?;
    Ok(line.trim().strip_prefix("shlibs:Depends=").context("dpkg-shlibdeps names no packages")?.to_owned())
}

fn add_control(tree: &Tree, architecture: &str, depends: &str) -> Result<()> {
    let sums = checksums(tree)?;
    let size = output_of("du", &["-sk", "--apparent-size", &text(&tree.path(""))])?;
    let installed_kib = size.split_whitespace().next().context("du names no size")?;
    let values = [
        ("version", &*format!("{VERSION}-{REVISION}")),
        ("architecture", architecture),
        ("maintainer", &maintainer()),
        ("installed_kib", installed_kib),
        ("depends", depends),
    ];
    let template = fs::read_to_string(root().join("tools/dist/control.in"))?;
    let control = values.iter().fold(template, |text, (name, value)| text.replace(&format!("@{name}@"), value));
    tree.write("DEBIAN/control", control)?;
    tree.write("DEBIAN/md5sums", sums)?;
    tree.write("DEBIAN/shlibs", format!("libpeerfs 0 peerfs (>= {VERSION})\n"))?;
    tree.write("DEBIAN/triggers", "activate-noawait ldconfig\n")?;
    // Whatever the umask is.
    run("chmod", &["-R", "u=rwX,go=rX", &text(&tree.path(""))])
}

fn checksums(tree: &Tree) -> Result<String> {
    let output = Command::new("find")
        .args(["lib", "usr", "-type", "f", "-exec", "md5sum", "{}", "+"])
        .current_dir(tree.path(""))
        .output()
        .context("find cannot be started")?;
    ensure!(output.status.success(), "find: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

fn gzip(path: &Path) -> Result<()> {
    run("gzip", &["--best", "--no-name", &text(path)])
}

fn name_of(path: &Path) -> Result<String> {
    Ok(path.file_name().context("a file has a name")?.to_string_lossy().into_owned())
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
