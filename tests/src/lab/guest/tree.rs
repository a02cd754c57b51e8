//! A small tree with everything that a filesystem must keep, which a seed makes again: nothing needs to be stored to
//! verify it in a later boot.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::Random;

const DIRECTORIES: u64 = 12;
const FILES: u64 = 72;
const LINKS: u64 = 10;

/// What is in the tree, in the order in which it is made.
enum Entry {
    Directory(PathBuf),
    File { path: PathBuf, seed: u64, length: usize, hole: u64, mode: u32 },
    Hard { path: PathBuf, to: PathBuf },
    Symbolic { path: PathBuf, to: PathBuf },
}

/// Makes the tree of a seed below a directory.
///
/// # Errors
/// When something cannot be made.
pub fn make(root: &Path, seed: u64) -> Result<()> {
    fs::create_dir_all(root)?;
    for entry in plan(seed) {
        match entry {
            Entry::Directory(path) => fs::create_dir(root.join(path))?,
            Entry::File { path, seed, length, hole, mode } => {
                let file = File::create(root.join(path))?;
                // A hole with nothing behind it is part of the file too.
                file.set_len(hole + length as u64)?;
                file.write_all_at(&content(seed, length), hole)?;
                file.set_permissions(PermissionsExt::from_mode(mode))?;
            }
            Entry::Hard { path, to } => fs::hard_link(root.join(to), root.join(path))?,
            Entry::Symbolic { path, to } => symlink(to, root.join(path))?,
        }
    }
    Ok(())
}

/// The tree of a seed is there, whole.
///
/// # Errors
/// Names the first entry that is not as it was made.
pub fn verify(root: &Path, seed: u64) -> Result<()> {
    let entries = plan(seed);
    for entry in &entries {
        let path = match entry {
            Entry::Directory(path) | Entry::File { path, .. } | Entry::Hard { path, .. } | Entry::Symbolic { path, .. } => path,
        };
        check(root, entry).with_context(|| path.display().to_string())?;
    }
    let found = count(root)?;
    ensure!(found == entries.len(), "there are {found} entries, not {}", entries.len());
    Ok(())
}

fn check(root: &Path, entry: &Entry) -> Result<()> {
    match entry {
        Entry::Directory(path) => ensure!(root.join(path).symlink_metadata()?.is_dir(), "it is no directory"),
        Entry::File { path, seed, length, hole, mode } => {
            let found = fs::read(root.join(path))?;
            ensure!(found.len() == *hole as usize + length, "it has {} bytes, not {}", found.len(), *hole as usize + length);
            let (zeros, data) = found.split_at(*hole as usize);
            ensure!(zeros.iter().all(|byte| *byte == 0), "its hole has bytes");
            ensure!(data == content(*seed, *length), "it has other bytes");
            let found = root.join(path).metadata()?.mode() & 0o7777;
            ensure!(found == *mode, "its mode is {found:o}, not {mode:o}");
        }
        Entry::Hard { path, to } => {
            let (one, other) = (root.join(path).metadata()?, root.join(to).metadata()?);
            ensure!(one.ino() == other.ino() && one.nlink() > 1, "it is not the same file as {}", to.display());
        }
        Entry::Symbolic { path, to } => ensure!(fs::read_link(root.join(path))? == *to, "it points elsewhere"),
    }
    Ok(())
}

fn count(directory: &Path) -> Result<usize> {
    let mut found = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        found += 1;
        if entry.file_type()?.is_dir() {
            found += count(&entry.path())?;
        }
    }
    Ok(found)
}

fn plan(seed: u64) -> Vec<Entry> {
    let mut random = Random::new(seed);
    let mut directories = vec![PathBuf::new()];
    let mut entries = Vec::new();
    for number in 0..DIRECTORIES {
        // Every other one is in the last, which makes them deep.
        let last = directories.len() - 1;
        let parent = if number % 2 == 0 { last } else { random.below(last as u64 + 1) as usize };
        let path = directories[parent].join(format!("dir {number}"));
        directories.push(path.clone());
        entries.push(Entry::Directory(path));
    }
    let mut files = Vec::new();
    for number in 0..FILES {
        let path = random.pick(&directories).join(format!("fünf-{number}"));
        let size = *random.pick(&[0, 1, 4095, 4096, 4097, 40_000, 200_000, 300_000]);
        let length = size + random.below(20) as usize;
        let hole = if random.one_in(6) { random.below(1 << 20) } else { 0 };
        files.push(path.clone());
        entries.push(Entry::File { path, seed: random.bits(), length, hole, mode: *random.pick(&[0o644, 0o600, 0o755, 0o444]) });
    }
    for number in 0..LINKS {
        let path = random.pick(&directories).join(format!("hard{number}"));
        entries.push(Entry::Hard { path, to: random.pick(&files).clone() });
        let path = random.pick(&directories).join(format!("symbolic{number}"));
        let to = if random.one_in(2) { random.pick(&files).clone() } else { PathBuf::from("../no/where") };
        entries.push(Entry::Symbolic { path, to });
    }
    entries
}

fn content(seed: u64, length: usize) -> Vec<u8> {
    let mut content = vec![0; length];
    Random::new(seed).fill(&mut content);
    content
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_nothing_but_a_hole_is_made_too() {
        // In the one of 306 a file is nothing but a hole.
        let place = tempfile::tempdir().expect("a directory");
        make(place.path(), 306).expect("made");
        verify(place.path(), 306).expect("whole");
    }

    #[test]
    fn a_tree_is_recognised_and_a_damaged_one_is_not() {
        let place = tempfile::tempdir().expect("a directory");
        let root = place.path().join("tree");
        make(&root, 5).expect("made");
        verify(&root, 5).expect("whole");
        verify(&root, 6).expect_err("the tree of another seed");
        fs::write(root.join("more"), "").expect("written");
        assert!(verify(&root, 5).expect_err("one more").to_string().contains("entries"));
        fs::remove_file(root.join("more")).expect("removed");
        let file = plan(5).into_iter().find_map(|entry| match entry {
            Entry::File { path, length, mode: 0o644, .. } if length > 9 => Some(root.join(path)),
            _ => None,
        });
        let file = fs::OpenOptions::new().write(true).open(file.expect("a file")).expect("open");
        let end = file.metadata().expect("metadata").len() - 1;
        let mut last = [0];
        fs::File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file)))
            .and_then(|file| file.read_exact_at(&mut last, end))
            .expect("read");
        file.write_all_at(&[last[0] ^ 1], end).expect("damaged");
        assert!(format!("{:#}", verify(&root, 5).expect_err("damaged")).contains("other bytes"));
    }
}
