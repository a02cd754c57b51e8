//! The controller loses its state under a mounted volume that is read, written and synced.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use peerfs_sys::Bar;

use super::tree;
use crate::lab::guest::{A, B, Controller, Guest, set, text, tree as content, until, until_within};

/// PMRCTL, NVMe base specification 2.1, section 3.1.4.21.
const PMRCTL: u64 = 0xE04;
/// A call that takes longer hangs.
const HANG: Duration = Duration::from_secs(60);
/// Bytes of one write.
const CHUNK: usize = 16 << 10;
/// Writes go round in a file of so many chunks.
const CHUNKS: u64 = 32;

pub fn controller(guest: &mut Guest<'_>) -> Result<()> {
    under_load(guest, B, "ns1", || set(B.sysfs("reset"), "1"))?;
    under_load(guest, A, "pmr", || set(A.sysfs("reset"), "1"))
}

pub fn region(guest: &mut Guest<'_>) -> Result<()> {
    under_load(guest, A, "pmr", || {
        let bar = Bar::from_sysfs(A.sysfs("resource0")).context("mapping the registers")?;
        bar.write_u32(PMRCTL, 0).map_err(|error| anyhow!("PMRCTL: {error}"))
    })
}

fn under_load(guest: &mut Guest<'_>, controller: Controller, part: &str, blow: fn() -> Result<()>) -> Result<()> {
    guest.bind(controller)?;
    let device = controller.part(part);
    guest.peerfs(&["mkfs", "--force", &device])?;
    tree::fill(guest, &device)?;
    let point = guest.mount(&device)?;

    let load = Load::start(&point)?;
    until("the load has begun", || (load.done() >= 3).then_some(()))?;
    blow()?;
    let (before, begun) = (load.done(), Instant::now());
    until_within(HANG, "the load goes on or ends", || (load.done() > before + 2 || load.ended()).then_some(()))?;
    eprintln!("{} writes before the blow, {} after, in {:?}", before, load.done() - before, begun.elapsed());
    let synced = load.end()?;

    guest.peerfs(&["info", &text(&point)]).context("the server after the blow")?;
    // What was never synced may be lost, and the server says so when it ends.
    if guest.umount(&point).is_err() {
        guest.umount_by_force(&point)?;
    }
    let point = guest.mount(&device).context("mounting after the blow")?;
    content::verify(&point.join("tree"), guest.seed())?;
    synced.verify(&point.join("load"))?;
    guest.umount(&point)?;
    let said = guest.peerfs(&["fsck", &device])?;
    ensure!(said.contains("clean"), "fsck says {said}");
    Ok(())
}

/// Threads that write and sync, and that read.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    running: Arc<AtomicU64>,
    outcomes: Receiver<io::Result<u64>>,
}

/// Writes up to this number are on the device; the one after may be.
struct Synced(u64);

impl Load {
    fn start(point: &Path) -> Result<Load> {
        let (sender, outcomes) = channel();
        let load = Load { stop: Arc::default(), done: Arc::default(), running: Arc::new(AtomicU64::new(2)), outcomes };
        let writes: fn(&Path, &AtomicBool, &AtomicU64) -> io::Result<u64> = write;
        for (work, path) in [(writes, point.join("load")), (read, point.join("tree"))] {
            let (stop, done, running, sender) = (load.stop.clone(), load.done.clone(), load.running.clone(), sender.clone());
            std::thread::spawn(move || {
                let outcome = work(&path, &stop, &done);
                running.fetch_sub(1, Ordering::Relaxed);
                // The case may have given up on us.
                let _ = sender.send(outcome);
            });
        }
        Ok(load)
    }

    fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// One has met an error.
    fn ended(&self) -> bool {
        self.running.load(Ordering::Relaxed) < 2
    }

    /// Answers what was synced; errors other than EIO are failures, and so is a call that does not come back.
    fn end(self) -> Result<Synced> {
        self.stop.store(true, Ordering::Relaxed);
        let mut synced = 0;
        for _ in 0..2 {
            match self.outcomes.recv_timeout(HANG).map_err(|_| anyhow!("a read, write or fsync hangs"))? {
                Ok(number) => synced = synced.max(number),
                Err(error) => return Err(anyhow!(error).context("under the blow")),
            }
        }
        Ok(Synced(synced))
    }
}

/// Writes and syncs until told to stop or the first EIO; answers the number of the last synced write.
fn write(path: &Path, stop: &AtomicBool, done: &AtomicU64) -> io::Result<u64> {
    let file = File::create(path)?;
    for number in 1.. {
        let outcome = file.write_all_at(&chunk(number), place(number)).and_then(|()| file.sync_all());
        match outcome {
            Ok(()) if !stop.load(Ordering::Relaxed) => done.fetch_add(1, Ordering::Relaxed),
            Ok(()) => return Ok(number),
            Err(error) if error.raw_os_error() == Some(libc::EIO) => return Ok(number - 1),
            Err(error) => return Err(error),
        };
    }
    Ok(0)
}

/// Reads the tree's files past the page cache until told to stop or the first EIO.
fn read(root: &Path, stop: &AtomicBool, _done: &AtomicU64) -> io::Result<u64> {
    while !stop.load(Ordering::Relaxed) {
        if let Err(error) = read_all(root) {
            return if error.raw_os_error() == Some(libc::EIO) { Ok(0) } else { Err(error) };
        }
    }
    Ok(0)
}

fn read_all(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let (path, kind): (PathBuf, _) = entry.and_then(|entry| Ok((entry.path(), entry.file_type()?)))?;
        if kind.is_dir() {
            read_all(&path)?;
        } else if kind.is_file() {
            let mut file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path)?;
            io::copy(&mut file, &mut io::sink())?;
        }
    }
    Ok(())
}

impl Synced {
    fn verify(&self, path: &Path) -> Result<()> {
        let file = File::open(path)?;
        for number in (self.0 + 1).saturating_sub(CHUNKS).max(1)..=self.0 {
            let mut found = vec![0; CHUNK];
            file.read_exact_at(&mut found, place(number)).with_context(|| format!("write {number} of {}", self.0))?;
            // The write after the last synced one may have overwritten the oldest.
            let newer = number + CHUNKS == self.0 + 1;
            ensure!(newer || found == chunk(number), "the synced write {number} of {} is lost", self.0);
        }
        Ok(())
    }
}

fn place(number: u64) -> u64 {
    number % CHUNKS * CHUNK as u64
}

fn chunk(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(CHUNK / 8)
}
