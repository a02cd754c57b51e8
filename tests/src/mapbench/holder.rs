//! A process that holds many mappings of 4 KiB each, and its parent's view of several of them.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use peerfs_client::{File, ImporterSpec, MapFlags, Mapping, Session, SessionOptions};
use peerfs_conformance::kit::worker::{NOBODY, Nursery, Worker, die_with_parent, hear, say};
use peerfs_conformance::{kit::ScratchMount, words};

const BLOCK: u64 = 4096;
/// Mappings of one process: each is a memory mapping, of which the kernel allows 65,530.
const MAPPINGS_PER_PROCESS: u64 = 32_000;

/// The child: on each line `map` it maps `count` blocks from number `first` on, wrapping at the end of the file, and
/// says `mapped DIRECT`. `hung` never acknowledges a revocation.
///
/// # Errors
/// When a call fails.
pub fn run(path: &Path, manners: &str, first: u64, count: u64) -> Result<()> {
    die_with_parent()?;
    let file = File::open(path)?;
    let blocks = std::fs::metadata(path)?.len() / BLOCK;
    let options = SessionOptions { acknowledge: manners != "hung" };
    let session = Session::open_with(path.parent().context("a file is in a directory")?, ImporterSpec::cpu(), options)?;
    let mut held: Vec<Mapping> = Vec::new();
    loop {
        match hear()?.as_str() {
            "map" => {
                held.clear();
                for number in first..first + count {
                    let start = number % blocks * BLOCK;
                    held.push(session.map(&file, start..start + BLOCK, MapFlags::empty())?);
                }
                let direct = held.iter().flat_map(Mapping::segments).filter(|segment| segment.reason.is_none()).count();
                say(format!("mapped {direct}"))?;
            }
            other => anyhow::bail!("`{other}` is no command"),
        }
    }
}

/// Processes that together hold a number of mappings of one file.
pub(super) struct Crowd {
    workers: Vec<Worker>,
    count: u64,
}

impl Crowd {
    pub(super) fn start(scratch: &ScratchMount, program: &Path, file: &Path, count: u64, hung: bool) -> Result<Crowd> {
        let nursery = Nursery::of_program(scratch, program, "child")?;
        let manners = if hung { "hung" } else { "cooperative" };
        let mut workers = Vec::new();
        let mut first = 0;
        while first < count {
            let share = MAPPINGS_PER_PROCESS.min(count - first);
            workers.push(nursery.start(NOBODY, &words![file, manners, first.to_string(), share.to_string()])?);
            first += share;
        }
        Ok(Crowd { workers, count })
    }

    /// Every mapping is made anew.
    pub(super) fn map(&mut self) -> Result<()> {
        for worker in &mut self.workers {
            worker.tell("map")?;
        }
        let mut direct = 0;
        for worker in &self.workers {
            direct += worker.expect_within("mapped", std::time::Duration::from_secs(600))?.parse::<u64>()?;
        }
        ensure!(direct == self.count, "{direct} of {} mappings are direct", self.count);
        Ok(())
    }
}
