//! The kernel that the lab boots: Debian's package, unpacked into a cache and never installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow};

use super::command::output;

/// Metapackages that name a kernel, best first.
const NAMES: [&str; 2] = ["linux-image-6.12-amd64", "linux-image-amd64"];

/// An unpacked kernel package.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// The image that boots.
    pub image: PathBuf,
    /// The directory that has `kernel/`.
    pub modules: PathBuf,
    /// `6.12.117+deb12-amd64`.
    pub release: String,
}

/// The cache directory: `$PEERFS_LAB_CACHE`, or in the user's cache.
pub fn cache() -> PathBuf {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let users = || variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")));
    variable("PEERFS_LAB_CACHE").unwrap_or_else(|| users().unwrap_or_else(std::env::temp_dir).join("peerfs-lab"))
}

/// The kernel in the cache; one is fetched if there is none.
///
/// # Errors
/// When there is none and none can be fetched: the message says what to do.
pub fn obtain() -> Result<Kernel> {
    let place = cache().join("kernel");
    if !place.exists() {
        fetch(&place).with_context(|| {
            format!(
                "no kernel for the lab: fetching one needs apt and a network; or unpack a Debian kernel package with dpkg-deb -x to {}",
                place.display()
            )
        })?;
    }
    unpacked(&place)
}

fn unpacked(place: &Path) -> Result<Kernel> {
    let boot = place.join("boot");
    let image = fs::read_dir(&boot)
        .with_context(|| boot.display().to_string())?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find_map(|path| Some((path.file_name()?.to_str()?.strip_prefix("vmlinuz-")?.to_owned(), path)));
    let (release, image) = image.ok_or_else(|| anyhow!("{} has no vmlinuz: remove {}", boot.display(), place.display()))?;
    let modules = [place.join("lib/modules"), place.join("usr/lib/modules")].map(|directory| directory.join(&release));
    let modules = modules.into_iter().find(|directory| directory.exists()).context("the kernel package has no modules")?;
    Ok(Kernel { image, modules, release })
}

fn fetch(place: &Path) -> Result<()> {
    let parent = place.parent().context("a cache is in a directory")?;
    fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
    let work = tempfile::Builder::new().prefix("fetching-").tempdir_in(parent)?;
    let package = NAMES
        .into_iter()
        .find_map(|name| package_of(name).ok())
        .ok_or_else(|| anyhow!("apt knows neither {} nor {} (apt-get update?)", NAMES[0], NAMES[1]))?;
    eprintln!("lab: fetching {package} into {}", parent.display());
    output(Command::new("apt-get").args(["download", "-qq", &package]).current_dir(work.path()), "apt")?;
    let archive = fs::read_dir(work.path())?.next().context("apt-get download left no file")??.path();
    let tree = work.path().join("tree");
    output(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(&tree), "dpkg")?;
    match fs::rename(&tree, place) {
        // Somebody beside us was faster.
        Err(_) if place.exists() => Ok(()),
        other => other.with_context(|| place.display().to_string()),
    }
}

/// The package that a metapackage depends on.
fn package_of(name: &str) -> Result<String> {
    let text = output(Command::new("apt-cache").args(["depends", name]), "apt")?;
    first_image(&String::from_utf8(text)?).with_context(|| format!("{name} depends on no kernel"))
}

fn first_image(depends: &str) -> Option<String> {
    let packages = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    packages.map(str::trim).find(|package| package.starts_with("linux-image-")).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_package_behind_a_metapackage_is_found() {
        let text = "linux-image-6.12-amd64\n  Depends: something\n  Depends: linux-image-6.12.117+deb12-amd64\n";
        assert_eq!(first_image(text).as_deref(), Some("linux-image-6.12.117+deb12-amd64"));
        assert_eq!(first_image("linux-image-amd64\n"), None);
    }

    #[test]
    fn an_unpacked_package_is_read_and_half_a_one_is_named() {
        let place = tempfile::tempdir().expect("a directory");
        fs::create_dir_all(place.path().join("boot")).expect("boot");
        assert!(unpacked(place.path()).expect_err("no image").to_string().contains("vmlinuz"));
        fs::write(place.path().join("boot/vmlinuz-6.1"), "").expect("image");
        assert!(unpacked(place.path()).is_err(), "no modules");
        fs::create_dir_all(place.path().join("usr/lib/modules/6.1")).expect("modules");
        assert_eq!(unpacked(place.path()).expect("whole").release, "6.1");
    }
}
