//! A small volume that grows old: filled until there is no room, thinned out, written anew, again and again, in
//! between checked, remounted, and its server killed in the middle of it.
//!
//! A model knows what every file must contain, and what a crash may leave of it. Free space must be exact to the block,
//! and the extents of files are compared with those of a fresh copy in the end.

mod account;
mod content;
mod layout;
mod model;
mod work;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use peerfs_sys::ProcessHandle;

use self::account::Account;
use self::content::{HOLE, SECTOR, bytes_of};
use self::layout::Layout;
use self::work::{Outcome, Work, read_stamps};
use crate::{Random, ScratchMount};

/// How a volume is mounted here.
const OPTIONS: &[&str] = &["--cmb", "16M", "-o", "deadline_ms=20"];
/// Operations between two checks.
const OPERATIONS: u64 = 300;
/// One file in so many is read at a check.
const SAMPLE: u64 = 4;
/// Latest kill after the begin of an epoch.
const KILL_MS: u64 = 400;
/// Time between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(20);
/// Longest wait for a killed server.
const PATIENCE: Duration = Duration::from_secs(20);
const BLOCK_SECTORS: usize = 8;

/// What to do.
#[derive(Debug, Clone, Copy)]
pub struct Plan<'a> {
    /// Choices.
    pub seed: u64,
    /// How long.
    pub time: Duration,
    /// Size of the volume, as mkfs takes it.
    pub size: &'a str,
}

/// Ages a volume and prints what became of it.
///
/// # Errors
/// When a file is not what it must be, a block is lost or counted twice, or fsck finds something.
pub fn run(plan: Plan<'_>) -> Result<()> {
    let mut random = Random::new(plan.seed);
    let scratch = ScratchMount::new(plan.size, OPTIONS)?;
    let work = Work::new(scratch.path(), Random::new(random.bits()));
    let start = Instant::now();
    let mut aging =
        Aging { scratch, work, random, start, checks: Checks::default(), layout: Layout::default(), told: start, told_bytes: 0 };
    while start.elapsed() < plan.time || aging.work.tally.full == 0 {
        let epoch = aging.checks.epochs;
        aging.epoch().with_context(|| format!("epoch {epoch} of seed {}", plan.seed))?;
    }
    aging.finish(plan.size).with_context(|| format!("at the end of seed {}", plan.seed))
}

/// Kills it. One of its threads may wait for a page of a program that waits for the server (README, Limits): then the
/// mount is ended by force.
fn kill_server(server: Pid, mountpoint: &Path) -> Result<()> {
    let process = ProcessHandle::open(server.as_raw().cast_unsigned())?;
    kill(server, Signal::SIGKILL)?;
    if !process.wait_exit(PATIENCE)? {
        println!("the killed server waits for itself: umount --force");
        // It says busy, and has cut the connection.
        let _busy = umount2(mountpoint, MntFlags::MNT_FORCE);
        ensure!(process.wait_exit(PATIENCE)?, "the killed server does not end");
    }
    Ok(())
}

/// Counts of what was checked.
#[derive(Debug, Default, Clone, Copy)]
struct Checks {
    epochs: u64,
    /// Blocks were exactly the files'.
    exact: u64,
    remounts: u64,
    kills: u64,
}

struct Aging {
    scratch: ScratchMount,
    work: Work,
    random: Random,
    start: Instant,
    checks: Checks,
    layout: Layout,
    told: Instant,
    told_bytes: u64,
}

impl Aging {
    fn epoch(&mut self) -> Result<()> {
        match self.random.below(6) {
            0 => self.crash()?,
            1 => {
                self.grow_older(OPERATIONS)?;
                self.remount()?;
            }
            _ => self.grow_older(OPERATIONS)?,
        }
        self.work.rest();
        self.compare(SAMPLE)?;
        self.count()?;
        self.checks.epochs += 1;
        if self.told.elapsed() >= PROGRESS {
            self.tell();
        }
        Ok(())
    }

    fn grow_older(&mut self, operations: u64) -> Result<()> {
        for _ in 0..operations {
            ensure!(self.work.step()? != Outcome::Gone, "the server is gone");
        }
        Ok(())
    }

    /// Reads one file in `sample`.
    fn compare(&mut self, sample: u64) -> Result<()> {
        for name in self.work.model.names() {
            if self.random.one_in(sample) {
                let actual = read_stamps(&self.scratch.join(&name))?;
                let expected = self.work.model.file(&name)?.sectors();
                ensure!(actual.len() == expected.len(), "{name} has {} sectors, not {}", actual.len(), expected.len());
                let other = actual.iter().zip(expected).position(|(actual, expected)| actual != expected);
                ensure!(other.is_none(), "sector {} of {name} is another", other.unwrap_or_default());
            }
        }
        Ok(())
    }

    fn count(&mut self) -> Result<Account> {
        let account = Account::settled(&self.scratch, self.work.shared)?;
        if account.data == account.of_files {
            self.work.shared = false;
            self.checks.exact += 1;
        }
        Ok(account)
    }

    /// Unmounts, checks, looks at the layout and mounts again: not a block may have gone or come.
    fn remount(&mut self) -> Result<()> {
        self.work.rest();
        let before = self.count()?;
        let inodes = self.inodes()?;
        self.scratch.umount()?;
        self.work.model.settle();
        self.scratch.fsck()?;
        self.layout = Layout::of(&self.scratch, &inodes)?;
        let owned = self.layout.owned_blocks();
        // Where files share blocks nobody sees from outside that the server has heard of the last close.
        ensure!(before.data >= owned, "{} blocks of data were in use, and files have {owned}", before.data);
        self.scratch.mount(OPTIONS)?;
        let after = self.count()?;
        ensure!(after.data == owned, "{} blocks of data are in use, and files have {owned}", after.data);
        ensure!(after.of_files == before.of_files, "{before:?} became {after:?} by a remount");
        self.compare(1)?;
        self.checks.remounts += 1;
        Ok(())
    }

    fn inodes(&self) -> Result<Vec<u64>> {
        fs::read_dir(self.scratch.path())?.map(|entry| Ok(entry?.metadata()?.ino())).collect()
    }

    /// Kills the server in the middle of it: what was synced is there, everything else as it was at some time.
    fn crash(&mut self) -> Result<()> {
        let server = Pid::from_raw(self.scratch.server_pid()?);
        let (delay, killed) = (Duration::from_millis(self.random.below(KILL_MS)), self.work.killed.clone());
        let mountpoint = self.scratch.path();
        let killer = thread::spawn(move || {
            thread::sleep(delay);
            killed.store(true, Ordering::Release);
            kill_server(server, &mountpoint)
        });
        while self.work.step()? != Outcome::Gone {}
        killer.join().map_err(|_| anyhow::anyhow!("the killer panicked"))??;
        self.work.rest();
        self.scratch.umount()?;
        self.work.killed.store(false, Ordering::Release);
        self.scratch.fsck()?;
        self.scratch.mount(OPTIONS)?;
        let mut left = Vec::new();
        for entry in fs::read_dir(self.scratch.path())? {
            let entry = entry?;
            left.push((entry.file_name().to_string_lossy().into_owned(), read_stamps(&entry.path())?));
        }
        self.work.model.adopt(left)?;
        self.checks.kills += 1;
        Ok(())
    }

    fn tell(&mut self) {
        let (written, since) = (self.work.tally.written - self.told_bytes, self.told.elapsed());
        println!(
            "{:5} s: {} operations, {} files, {:.1} MiB/s written; {}",
            self.start.elapsed().as_secs(),
            self.work.tally.operations,
            self.work.model.count(),
            written as f64 / 1048576.0 / since.as_secs_f64(),
            self.layout,
        );
        (self.told, self.told_bytes) = (Instant::now(), self.work.tally.written);
    }

    /// Compares with a fresh copy; then removes everything, and everything must be free.
    fn finish(mut self, size: &str) -> Result<()> {
        self.remount()?;
        self.tell();
        let fresh = self.fresh_copy(size)?;
        println!("a fresh copy of the same files: {fresh}");
        for name in self.work.model.names() {
            fs::remove_file(self.scratch.join(&name))?;
            self.work.model.remove(&name);
        }
        let empty = Account::settled(&self.scratch, false)?;
        ensure!(empty.data == 0, "{} blocks are in use although there is no file", empty.data);
        self.scratch.umount()?;
        self.scratch.fsck()?;
        let (checks, tally) = (self.checks, self.work.tally);
        println!(
            "{} operations in {} s, {} MiB written, {} times full, {} epochs ({} exact), {} remounts, {} kills; {} of {} mapped bytes directly",
            tally.operations,
            self.start.elapsed().as_secs(),
            tally.written >> 20,
            tally.full,
            checks.epochs,
            checks.exact,
            checks.remounts,
            checks.kills,
            tally.direct,
            tally.mapped,
        );
        ensure!(tally.direct > 0, "no byte of a mapping went directly");
        ensure!(tally.full > 0, "the volume was never full");
        Ok(())
    }

    /// The same files on a new volume, one after the other.
    fn fresh_copy(&self, size: &str) -> Result<Layout> {
        use std::os::unix::fs::FileExt;
        let mut copy = ScratchMount::new(size, OPTIONS)?;
        let mut inodes = Vec::new();
        'files: for name in self.work.model.names() {
            let file = fs::File::create_new(copy.join(&name))?;
            inodes.push(file.metadata()?.ino());
            let sectors = self.work.model.file(&name)?.sectors();
            file.set_len((sectors.len() * SECTOR) as u64)?;
            let blocks = sectors.chunks(BLOCK_SECTORS).enumerate();
            for (block, stamps) in blocks.filter(|(_, stamps)| stamps.iter().any(|stamp| *stamp != HOLE)) {
                match file.write_all_at(&bytes_of(stamps), (block * BLOCK_SECTORS * SECTOR) as u64) {
                    // Clones share no blocks there.
                    Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => break 'files,
                    other => other?,
                }
            }
        }
        copy.umount()?;
        Layout::of(&copy, &inodes)
    }
}
