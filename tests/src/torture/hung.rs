//! Two processes map one file and one of them hangs: nobody else waits for it beyond the
//! deadline, and readers that need nothing of it do not wait at all.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::raw::open_direct;
use super::worker::{NOBODY, Nursery, Worker, shared_file};
use crate::{Random, ScratchMount, words};

const FILE_BYTES: usize = 4 << 20;
/// Long, so that a wait for the hung process stands out from the noise of a busy machine.
const DEADLINE: Duration = Duration::from_millis(1500);

/// What the server needs the mapping back for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    Administrator,
    CachedWrite,
    Truncate,
    /// As an administrator, with the hung process stopped altogether.
    Stopped,
}

/// Every kind of need, once.
///
/// # Errors
/// When somebody waits who need not, or the hung process keeps its window.
pub fn all(seed: u64) -> Result<()> {
    let deadline = format!("deadline_ms={}", DEADLINE.as_millis());
    let mut scratch = ScratchMount::new("64M", &["-o", &deadline])?;
    let nursery = Nursery::new(&scratch)?;
    let mut content = vec![0; FILE_BYTES];
    Random::new(seed).fill(&mut content);
    for need in [Need::Administrator, Need::CachedWrite, Need::Truncate, Need::Stopped] {
        one(&scratch, &nursery, need, &content).with_context(|| format!("{need:?}"))?;
    }
    scratch.umount()?;
    scratch.fsck()
}

fn one(scratch: &ScratchMount, nursery: &Nursery, need: Need, content: &[u8]) -> Result<()> {
    let (shared, other) = (scratch.join("shared"), scratch.join("other"));
    shared_file(&shared, content)?;
    shared_file(&other, content)?;
    let good = nursery.start(NOBODY, &words!["hold-library", &shared])?;
    good.expect("ready")?;
    let mut hung = nursery.start(NOBODY, &words!["hold-by-address", &shared])?;
    hung.expect("ready")?;
    let pid = Pid::from_raw(hung.pid().cast_signed());
    if need == Need::Stopped {
        kill(pid, Signal::SIGSTOP)?;
    }
    let before = enforced(&shared)?;
    // A buffered write or truncate(2) that waits for the cut holds the kernel's lock on the file, which direct reads of
    // pages that are being cached need too. And beside a cached writer, a cached read needs the mapping back itself.
    let patience = if matches!(need, Need::CachedWrite | Need::Truncate) { 2 * DEADLINE } else { DEADLINE };
    let readers = [(shared.clone(), true, patience), (shared.clone(), false, patience), (other, true, DEADLINE)];
    let took = among_readers(&readers, || {
        let start = Instant::now();
        take_back(&shared, need)?;
        Ok(start.elapsed())
    })?;
    ensure!(enforced(&shared)? > before, "nothing was enforced");
    good.expect("cut")?;
    let longest = direct_again(&good)?;
    if need == Need::Stopped {
        kill(pid, Signal::SIGCONT)?;
    }
    let status = hung.wait()?;
    ensure!(status.signal() == Some(Signal::SIGBUS as i32), "the hung process ended with {status} instead of SIGBUS");
    println!("{need:?}: cut after {took:?} (deadline {DEADLINE:?}); longest read of the other process {longest:?}");
    ensure!(took + Duration::from_millis(50) >= DEADLINE, "it was cut early");
    ensure!(longest < patience, "the other process waited for the hung one");
    Ok(fs::remove_file(&shared)?)
}

/// The good process gets its mapping back. What it read meanwhile differs after a truncation only.
fn direct_again(good: &Worker) -> Result<Duration> {
    loop {
        let line = good.line()?.context("the other process ended")?;
        if let Some(longest) = line.strip_prefix("direct ") {
            return Ok(Duration::from_millis(longest.parse()?));
        }
    }
}

fn take_back(path: &Path, need: Need) -> Result<()> {
    match need {
        Need::Administrator | Need::Stopped => {
            let revoked = peerfs_client::File::open(path)?.revoke(..)?;
            ensure!(revoked.enforced >= 1, "the hung process did not have to be cut");
            Ok(())
        }
        // The same byte: the other process compares.
        Need::CachedWrite => {
            let mut byte = [0];
            open_direct(path, false)?.read_exact_at(&mut byte, FILE_BYTES as u64 - 1)?;
            Ok(OpenOptions::new().write(true).open(path)?.write_all_at(&byte, FILE_BYTES as u64 - 1)?)
        }
        Need::Truncate => Ok(nix::unistd::truncate(path, FILE_BYTES as i64 - 4096)?),
    }
}

/// Runs `work` while plain readers go on: (file, through the cache, shorter than this takes every read of the file).
fn among_readers<T>(files: &[(PathBuf, bool, Duration)], work: impl FnOnce() -> Result<T>) -> Result<T> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let readers: Vec<_> = files.iter().map(|(path, cached, _)| scope.spawn(|| read_until(&stop, path, *cached))).collect();
        let result = work();
        stop.store(true, Ordering::Release);
        for (reader, (path, cached, limit)) in readers.into_iter().zip(files) {
            let (reads, longest) = reader.join().map_err(|_| anyhow!("a reader panicked"))??;
            let how = if *cached { "cached" } else { "direct" };
            println!("  {reads} {how} reads of {} meanwhile, the longest {longest:?}", path.display());
            ensure!(longest < *limit, "a {how} reader of {} waited for the hung process", path.display());
        }
        result
    })
}

fn read_until(stop: &AtomicBool, path: &Path, cached: bool) -> Result<(u64, Duration)> {
    let mut buffer = vec![0; 64 << 10];
    let (mut reads, mut longest) = (0, Duration::ZERO);
    while !stop.load(Ordering::Acquire) || reads == 0 {
        let start = Instant::now();
        let file = if cached { File::open(path)? } else { open_direct(path, false)? };
        for offset in (0..FILE_BYTES as u64).step_by(buffer.len()) {
            file.read_at(&mut buffer, offset)?;
        }
        longest = longest.max(start.elapsed());
        reads += 1;
    }
    Ok((reads, longest))
}

fn enforced(path: &Path) -> Result<u64> {
    Ok(peerfs_client::File::open(path)?.info()?.revocations_enforced)
}
