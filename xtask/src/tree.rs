//! A tree of installed files: the real one below a prefix, or what goes into a package.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Mode of a program.
pub const PROGRAM: u32 = 0o755;
/// Mode of everything else.
pub const DATA: u32 = 0o644;

/// The directory below which files are put.
pub struct Tree {
    root: PathBuf,
}

impl Tree {
    /// Of this directory, which need not exist.
    pub fn new(root: &Path) -> Result<Tree> {
        Ok(Tree { root: std::path::absolute(root)? })
    }

    /// Where a file of the tree is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Copies a file. The old one goes first: a program that runs, or has it open, keeps it.
    pub fn copy(&self, from: &Path, to: &str, mode: u32) -> Result<()> {
        let to = self.make_room(to)?;
        fs::copy(from, &to).with_context(|| format!("copy {} to {}", from.display(), to.display()))?;
        set_mode(&to, mode)
    }

    /// Writes a file.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> Result<()> {
        let path = self.make_room(name)?;
        fs::write(&path, content).with_context(|| format!("write {}", path.display()))?;
        set_mode(&path, DATA)
    }

    /// Makes a symbolic link.
    pub fn link(&self, target: &str, name: &str) -> Result<()> {
        let path = self.make_room(name)?;
        symlink(target, &path).with_context(|| format!("link {}", path.display()))
    }

    /// Makes a directory and all above it.
    pub fn directory(&self, name: &str) -> Result<PathBuf> {
        let path = self.path(name);
        fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
        Ok(path)
    }

    fn make_room(&self, name: &str) -> Result<PathBuf> {
        let path = self.path(name);
        let directory = path.parent().context("a file is in a directory")?;
        fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
        if path.is_symlink() || path.exists() {
            fs::remove_file(&path).with_context(|| format!("replace {}", path.display()))?;
        }
        Ok(path)
    }
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).with_context(|| path.display().to_string())
}
