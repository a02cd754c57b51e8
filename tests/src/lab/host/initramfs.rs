//! The guest's root: busybox, our programs with their libraries, and modules, in one archive.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::command::output;
use super::kernel::Kernel;
use super::modules;

const INIT: &str = include_str!("init.sh");
const DIRECTORIES: [&str; 9] = ["bin", "dev", "lib", "mnt", "proc", "run", "sys", "tmp", "etc"];
/// Our programs, which are beside the running one.
const PROGRAMS: [&str; 3] = ["peerfs", "peerfs-lab", "peerfs-torture"];

/// Makes the archive as the file `initramfs` in `work`. Not compressed: it lives for one run.
///
/// # Errors
/// When a program is missing or something cannot be written.
pub fn build(work: &Path, kernel: &Kernel) -> Result<PathBuf> {
    let root = work.join("root");
    for directory in DIRECTORIES {
        fs::create_dir_all(root.join(directory))?;
    }
    fs::write(root.join("init"), INIT)?;
    fs::set_permissions(root.join("init"), PermissionsExt::from_mode(0o755))?;
    let busybox = output(Command::new("which").arg("busybox"), "busybox-static")
        .context("busybox is missing: apt-get install busybox-static")?;
    fs::copy(String::from_utf8(busybox)?.trim(), root.join("bin/busybox"))?;
    let own = std::env::current_exe()?;
    let mut libraries = BTreeSet::new();
    for program in PROGRAMS {
        let path = own.with_file_name(program);
        ensure!(path.exists(), "{} is missing: cargo build --release -p peerfs -p peerfs-tests", path.display());
        let target = root.join("bin").join(program);
        // What only debuggers read is most of a program.
        output(Command::new("strip").args(["--strip-debug", "-o"]).arg(&target).arg(&path), "binutils")?;
        libraries.extend(libraries_of(&path)?);
    }
    for library in libraries {
        let target = root.join(library.strip_prefix("/")?);
        fs::create_dir_all(target.parent().context("a library is in a directory")?)?;
        fs::copy(&library, target).with_context(|| library.display().to_string())?;
    }
    add_modules(&root, kernel)?;
    pack(&root, &work.join("initramfs"))
}

fn libraries_of(program: &Path) -> Result<Vec<PathBuf>> {
    let text = String::from_utf8(output(Command::new("ldd").arg(program), "libc-bin")?)?;
    Ok(text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}

fn add_modules(root: &Path, kernel: &Kernel) -> Result<()> {
    let directory = root.join("lib/modules").join(&kernel.release);
    fs::create_dir_all(&directory)?;
    let modules = modules::collect(&kernel.modules)?;
    for module in &modules {
        fs::write(directory.join(&module.file), &module.content)?;
    }
    fs::write(directory.join("modules.dep"), modules::dependencies(&modules))?;
    Ok(())
}

fn pack(root: &Path, archive: &Path) -> Result<PathBuf> {
    let mut find = Command::new("find").arg(".").current_dir(root).stdout(Stdio::piped()).spawn()?;
    let names = find.stdout.take().context("find has no output")?;
    let mut cpio = Command::new("cpio");
    cpio.args(["-o", "--quiet", "-H", "newc"]).current_dir(root).stdin(names).stdout(File::create(archive)?);
    let status = cpio.status().context("the program `cpio` is missing: install it (apt-get install cpio)")?;
    ensure!(status.success() & find.wait()?.success(), "cpio ended with {status}");
    fs::remove_dir_all(root)?;
    Ok(archive.to_owned())
}
