//! Revocations while readers, writers and mappers keep the server busy: how many take longer than they may?

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use peerfs_client::{File, ImporterSpec, MapFlags, Session, SessionOptions};
use peerfs_conformance::kit::{Random, ScratchMount};

use super::{Plan, make_file};
use crate::report::{Report, milliseconds, percentile};

const DEADLINE: Duration = Duration::from_millis(100);
/// Files revoked at the same time, each with an importer of its own; this many of them hang.
const FILES: u64 = 16;
const HUNG: u64 = 4;
/// A hung importer's file is revoked once while another's is so often.
const SHARE_OF_HUNG: u64 = 20;
const FILE_BYTES: u64 = 8 << 20;

#[derive(Default)]
struct Tally {
    latencies: Mutex<Vec<Duration>>,
    enforced: AtomicU64,
    stop: AtomicBool,
    operations: AtomicU64,
}

pub(super) fn measure(plan: &Plan) -> Result<Report> {
    let scratch = ScratchMount::new("512M", &["--cmb", "256M"])?;
    let names = |kind: &str, count: u64| (0..count).map(|n| scratch.join(&format!("{kind}{n}"))).collect::<Vec<PathBuf>>();
    let (revoked, busy) = (names("revoked", FILES), names("busy", 4));
    for path in revoked.iter().chain(&busy) {
        make_file(path, FILE_BYTES)?;
    }
    let tally = &Tally::default();
    thread::scope(|scope| -> Result<()> {
        let others: Vec<_> = [cpu_reader, cpu_writer, mapper, mapper]
            .into_iter()
            .zip(&busy)
            .map(|(work, path)| scope.spawn(move || work(path, tally)))
            .collect();
        let workers: Vec<_> = (0..FILES).map(|n| (n, &revoked[n as usize])).collect();
        let revokers: Vec<_> = workers.into_iter().map(|(n, path)| scope.spawn(move || revoker(plan, n, path, tally))).collect();
        let outcomes: Vec<Result<()>> = revokers.into_iter().map(|thread| thread.join().expect("no panic")).collect();
        tally.stop.store(true, Ordering::Relaxed);
        others.into_iter().try_for_each(|thread| thread.join().expect("no panic"))?;
        outcomes.into_iter().collect()
    })?;
    let mut latencies = std::mem::take(&mut *tally.latencies.lock().expect("no panic"));
    let late = latencies.iter().filter(|latency| **latency > DEADLINE.mul_f64(1.2)).count();
    let mut report = Report::new(
        "Revocations under load (deadline 100 ms)",
        &["revocations", "later than deadline + 20 %", "cut unacknowledged", "p50 ms", "p99 ms", "max ms"],
    );
    report.row([
        latencies.len().to_string(),
        late.to_string(),
        tally.enforced.load(Ordering::Relaxed).to_string(),
        milliseconds(percentile(&mut latencies, 50)),
        milliseconds(percentile(&mut latencies, 99)),
        milliseconds(latencies.iter().max().copied().unwrap_or_default()),
    ]);
    report.note(format!(
        "{FILES} files at a time, {HUNG} of them held by importers that never acknowledge. Meanwhile one thread read through the \
         page cache, one wrote through it, two mapped and unmapped: {} operations.",
        tally.operations.load(Ordering::Relaxed)
    ));
    Ok(report)
}

fn revoker(plan: &Plan, number: u64, path: &Path, tally: &Tally) -> Result<()> {
    let hung = number < HUNG;
    let all = plan.loaded_revocations;
    let of_hung = (all / FILES / SHARE_OF_HUNG).max(1);
    let (quick_files, rest) = (FILES - HUNG, all - of_hung * HUNG);
    let turns = match hung {
        true => of_hung,
        false => rest / quick_files + u64::from(number - HUNG < rest % quick_files),
    };
    let file = File::open(path)?;
    let directory = path.parent().unwrap_or(path);
    let session = Session::open_with(directory, ImporterSpec::cpu(), SessionOptions { acknowledge: !hung })?;
    for _ in 0..turns {
        let mapping = session.map(&file, .., MapFlags::empty())?;
        let done = file.revoke(..)?;
        ensure!(done.grants > 0, "nothing was mapped: {:?}", mapping.segments());
        tally.enforced.fetch_add(done.enforced, Ordering::Relaxed);
        tally.latencies.lock().expect("no panic").push(done.latency);
    }
    Ok(())
}

fn cpu_reader(path: &Path, tally: &Tally) -> Result<()> {
    let (file, mut random) = (fs::File::open(path)?, Random::new(1));
    let mut buffer = vec![0; 64 << 10];
    repeat(tally, || {
        file.read_at(&mut buffer, random.below(FILE_BYTES))?;
        Ok(())
    })
}

fn cpu_writer(path: &Path, tally: &Tally) -> Result<()> {
    let (file, mut random) = (fs::OpenOptions::new().write(true).open(path)?, Random::new(2));
    let buffer = vec![7; 16 << 10];
    repeat(tally, || {
        file.write_all_at(&buffer, random.below(FILE_BYTES - buffer.len() as u64))?;
        Ok(())
    })
}

fn mapper(path: &Path, tally: &Tally) -> Result<()> {
    let (file, mut random) = (File::open(path)?, Random::new(3));
    let session = Session::open(path.parent().unwrap_or(path), ImporterSpec::cpu())?;
    repeat(tally, || {
        let start = random.below(FILE_BYTES / 4096) * 4096;
        session.map(&file, start..start + 4096, MapFlags::empty())?;
        Ok(())
    })
}

fn repeat(tally: &Tally, mut work: impl FnMut() -> Result<()>) -> Result<()> {
    while !tally.stop.load(Ordering::Relaxed) {
        work()?;
        tally.operations.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}
