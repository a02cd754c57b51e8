//! What names cost, beside ext4 in the same run: `cargo xtask bench-names`.
//!
//! Files without content are made, looked at, listed and removed, all in one directory and spread over many. Nothing here
//! judges a figure; what is checked is that the names are there when they should be.

mod peer;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use self::peer::LoopExt4;
use crate::ScratchMount;
use crate::report::{self, Report, peak_bytes, resident_bytes};

/// Size of both filesystems. Their files have holes where nothing is written.
const VOLUME: &str = "8G";

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Files.
    pub files: u64,
    /// Directories in the case of many.
    pub directories: u64,
}

impl Plan {
    /// What BENCHMARKS.md shows.
    pub const FULL: Plan = Plan { files: 1_000_000, directories: 1000 };
    /// Enough to know that it works.
    pub const QUICK: Plan = Plan { files: 2000, directories: 20 };
}

/// Names of one case.
struct Names {
    directories: Vec<PathBuf>,
    each: u64,
}

impl Names {
    fn new(root: &Path, files: u64, directories: u64) -> Names {
        Names { directories: (0..directories).map(|number| root.join(format!("d{number}"))).collect(), each: files / directories }
    }

    fn count(&self) -> u64 {
        self.each * self.directories.len() as u64
    }

    fn each(&self, mut act: impl FnMut(&Path) -> std::io::Result<()>) -> Result<()> {
        for directory in &self.directories {
            for number in 0..self.each {
                let path = directory.join(format!("file{number:07}"));
                act(&path).with_context(|| path.display().to_string())?;
            }
        }
        Ok(())
    }

    fn create(&self) -> Result<()> {
        self.each(|path| OpenOptions::new().write(true).create_new(true).open(path).map(drop))
    }

    fn stat(&self) -> Result<()> {
        self.each(|path| fs::symlink_metadata(path).map(drop))
    }

    fn unlink(&self) -> Result<()> {
        self.each(|path| fs::remove_file(path))
    }

    fn list(&self) -> Result<()> {
        let listed: usize = self.directories.iter().map(|path| fs::read_dir(path).map_or(0, Iterator::count)).sum();
        ensure!(listed as u64 == self.count(), "{listed} names are listed, not {}", self.count());
        Ok(())
    }
}

/// What is done with all the names, and before, which is not measured.
struct Act {
    name: &'static str,
    before: fn(&Names) -> Result<()>,
    act: fn(&Names) -> Result<()>,
}

const ACTS: [Act; 5] = [
    Act { name: "create", before: |_| Ok(()), act: Names::create },
    Act { name: "stat, cold", before: |_| drop_caches(), act: Names::stat },
    // The other filesystem's turn may have dropped the caches.
    Act { name: "stat, warm", before: Names::stat, act: Names::stat },
    Act { name: "list, cold", before: |_| drop_caches(), act: Names::list },
    Act { name: "unlink", before: |_| Ok(()), act: Names::unlink },
];

/// What the kernel remembers of names is forgotten.
fn drop_caches() -> Result<()> {
    nix::unistd::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").context("caches cannot be dropped; run it as root")
}

/// Measures, and writes each case as it is done.
///
/// # Errors
/// When something could not be measured.
pub fn run(plan: Plan, out: &mut dyn Write) -> Result<()> {
    ensure!(plan.directories > 0 && plan.files >= plan.directories, "give a directory or more, and a file or more for each");
    writeln!(out, "{}\n", report::machine())?;
    for directories in [1, plan.directories] {
        write!(out, "{}", case(plan.files, directories)?)?;
        out.flush()?;
    }
    Ok(())
}

fn case(files: u64, directories: u64) -> Result<Report> {
    let scratch = ScratchMount::new(VOLUME, &[])?;
    let peer = LoopExt4::new(VOLUME, files + directories)?;
    let ours = Names::new(&scratch.path(), files, directories);
    let theirs = Names::new(&peer.path(), files, directories);
    for directory in ours.directories.iter().chain(&theirs.directories) {
        fs::create_dir(directory)?;
    }
    let title = format!("{} files in {directories} director{}", ours.count(), if directories == 1 { "y" } else { "ies" });
    let columns = ["", "peerfs / ext4", "peerfs, names/s", "ext4, names/s", "server, MiB", "its peak, MiB"];
    let mut report = Report::new(&title, &columns);
    let server = scratch.server_pid()?;
    let memory = |report: &mut Report, name: &str, rates: [String; 3]| -> Result<()> {
        let mib = |bytes: u64| format!("{:.0}", bytes as f64 / f64::from(1 << 20));
        let [ratio, our_rate, their_rate] = rates;
        report.row([name.to_owned(), ratio, our_rate, their_rate, mib(resident_bytes(server)?), mib(peak_bytes(server)?)]);
        Ok(())
    };
    memory(&mut report, "(at the start)", Default::default())?;
    for Act { name, before, act } in ACTS {
        let rate = |names: &Names| -> Result<f64> {
            before(names)?;
            let start = Instant::now();
            act(names)?;
            Ok(names.count() as f64 / start.elapsed().as_secs_f64())
        };
        let (our_rate, their_rate) = (rate(&ours)?, rate(&theirs)?);
        memory(
            &mut report,
            name,
            [format!("{:.2}", our_rate / their_rate), format!("{our_rate:.0}"), format!("{their_rate:.0}")],
        )?;
    }
    // Removed names are gone for good when the directories are durable.
    File::open(scratch.path())?.sync_all()?;
    memory(&mut report, "(after fsync)", Default::default())?;
    Ok(report)
}
