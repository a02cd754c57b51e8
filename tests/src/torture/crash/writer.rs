//! The children that write: each makes versions of its file and says the number of every one that fsync confirmed.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use peerfs_abi::MapFlags;
use peerfs_client::{ImporterSpec, Mapping, Session};
use peerfs_sys::Window;

use super::plan::{BLOCK, Plan};
use crate::Random;
use crate::torture::raw::open_direct;
use crate::torture::worker::{die_with_parent, say};

/// How a writer writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// pwrite(2) through the page cache.
    Buffered,
    /// pwrite(2) past it.
    Direct,
    /// Stores to a shared mmap of the file.
    Mapped,
    /// A device mapping for writing.
    Device,
    /// A new file for every version.
    Create,
    /// A new file that is renamed over the one before.
    Rename,
}

/// Every way, by the name the child is called with.
pub const WAYS: [(Way, &str); 6] = [
    (Way::Buffered, "buffered"),
    (Way::Direct, "direct"),
    (Way::Mapped, "mapped"),
    (Way::Device, "device"),
    (Way::Create, "create"),
    (Way::Rename, "rename"),
];

impl Way {
    /// Does its first version write the whole file?
    pub fn whole_first(self) -> bool {
        matches!(self, Way::Mapped | Way::Device)
    }
}

/// When a writer begins its next version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Pace {
    /// At once.
    Free,
    /// When a line on standard input says that its last report has arrived where it cannot be lost.
    Answered,
}

impl Pace {
    fn report(self, text: String) -> Result<()> {
        say(text)?;
        if self == Pace::Answered {
            let read = std::io::stdin().read_line(&mut String::new())?;
            ensure!(read > 0, "nobody listens any more");
        }
        Ok(())
    }
}

/// Versions that `Create` keeps.
pub const KEPT: u64 = 8;

/// Writes versions until the server is gone.
///
/// # Errors
/// When writing fails before that.
pub fn write(way: &str, path: &Path, seed: u64, pace: Pace) -> Result<()> {
    die_with_parent()?;
    let way = WAYS.iter().find(|(_, name)| *name == way).context("no such way")?.0;
    let outcome = match way {
        Way::Create | Way::Rename => create(way, path, seed, pace),
        _ => overwrite(way, path, seed, pace),
    };
    let Err(error) = outcome else { return Ok(()) };
    let gone = error.chain().any(|cause| {
        let code = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error);
        matches!(code, Some(libc::ENOTCONN | libc::ECONNABORTED | libc::EIO | libc::ENOENT))
            || matches!(cause.downcast_ref(), Some(peerfs_client::Error::ServerGone))
    });
    if gone { Ok(()) } else { Err(error) }
}

fn overwrite(way: Way, path: &Path, seed: u64, pace: Pace) -> Result<()> {
    let plan = Plan::new(seed, way.whole_first());
    let contents = Plan::new(seed, way.whole_first());
    let file = match way {
        Way::Direct | Way::Device => {
            File::create(path)?;
            open_direct(path, true)?
        }
        _ => OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?,
    };
    let mut target = Target::File(&file);
    let (mut direct, mut total) = (0, 0);
    for step in plan {
        for run in step.runs {
            let bytes: Vec<u8> = run.clone().flat_map(|block| contents.block(step.version, block)).collect();
            direct += target.write(&bytes, run.start * BLOCK as u64)?;
            total += bytes.len() as u64;
        }
        file.sync_all()?;
        pace.report(format!("{} {direct} {total}", step.version))?;
        if step.version == 1 {
            target = Target::after_the_first(way, &file, path)?;
        }
    }
    Ok(())
}

/// What bytes are written through.
enum Target<'a> {
    File(&'a File),
    Mapped(Window),
    Device(Box<Mapping>),
}

impl<'a> Target<'a> {
    /// Mapping needs blocks, which the first version makes.
    fn after_the_first(way: Way, file: &'a File, path: &Path) -> Result<Target<'a>> {
        Ok(match way {
            Way::Mapped => Target::Mapped(Window::map(file, file.metadata()?.len() as usize, true)?),
            Way::Device => {
                let session = Session::open(path.parent().context("a file is in a directory")?, ImporterSpec::cpu())?;
                let file = peerfs_client::File::open_with(path, OpenOptions::new().read(true).write(true))?;
                Target::Device(Box::new(session.map(&file, .., MapFlags::WRITE)?))
            }
            _ => Target::File(file),
        })
    }

    /// Answers how many bytes went directly.
    fn write(&self, bytes: &[u8], offset: u64) -> Result<u64> {
        match self {
            Target::File(file) => file.write_all_at(bytes, offset)?,
            Target::Mapped(window) => {
                if window.write(offset as usize, bytes).is_err() {
                    // SIGBUS: the page could not be read in.
                    bail!(std::io::Error::from_raw_os_error(libc::EIO));
                }
            }
            Target::Device(mapping) => return Ok(mapping.write_at(offset, bytes)?.direct()),
        }
        Ok(0)
    }
}

fn create(way: Way, path: &Path, seed: u64, pace: Pace) -> Result<()> {
    for version in 1_u64.. {
        let fresh = created(path, version);
        let file = File::create(&fresh)?;
        file.write_all_at(&created_content(seed, version), 0)?;
        file.sync_all()?;
        match way {
            Way::Rename => {
                fs::rename(&fresh, path)?;
                File::open(path.parent().context("a file is in a directory")?)?.sync_all()?;
            }
            _ if version > KEPT => fs::remove_file(created(path, version - KEPT))?,
            _ => {}
        }
        pace.report(format!("{version} 0 0"))?;
    }
    Ok(())
}

/// Name of a version that is a file of its own.
pub fn created(path: &Path, version: u64) -> PathBuf {
    path.with_extension(format!("v{version}"))
}

/// Content of a version that is a file of its own.
pub fn created_content(seed: u64, version: u64) -> Vec<u8> {
    let mut random = Random::new(seed ^ (version << 32));
    let mut content = vec![0; random.below(70_000) as usize];
    random.fill(&mut content);
    content
}
