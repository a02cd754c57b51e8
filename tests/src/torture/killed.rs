//! Many clients, each killed at some moment of its life: nothing of them may be left in the server.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use peerfs_abi::MapFlags;
use peerfs_client::{File, ImporterSpec, Session, SessionOptions};

use super::worker::{NOBODY, Nursery, Worker, die_with_parent, shared_file};
use crate::{Random, ScratchMount, words};

const FILES: u64 = 4;
const FILE_BYTES: u64 = 8 << 20;
/// Clients alive at one time, unless told otherwise.
pub const CROWD: usize = 16;
/// Longest life of a client: enough to map a few dozen times.
const LIFE_US: u64 = 60_000;
/// How long the kernel may take to tell the server of the last death.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a server holds for its clients, by name.
type Counts = BTreeMap<String, u64>;

/// Starts `clients` programs in turn, `crowd` of them alive at one time, and kills each after a random time. Prints the
/// counts before and after.
///
/// # Errors
/// When something is left.
pub fn all(seed: u64, clients: u64, crowd: usize) -> Result<()> {
    let scratch = ScratchMount::new("256M", &["--cmb", "24M", "-o", "deadline_ms=20"])?;
    let mut random = Random::new(seed);
    let content = vec![7; FILE_BYTES as usize];
    for number in 0..FILES {
        shared_file(&scratch.join(&format!("file{number}")), &content)?;
    }
    let nursery = Nursery::new(&scratch)?;
    // Whatever the server opens once and keeps is open after the first client.
    live_and_die(&nursery, &scratch, &mut random, CROWD as u64, CROWD)?;
    let before = settled(&scratch, None)?;
    live_and_die(&nursery, &scratch, &mut random, clients, crowd)?;
    let after = settled(&scratch, Some(&before))?;
    println!("{clients} clients killed, {crowd} alive at one time; before: {before:?}\nafter: {after:?}");
    let total = scratch.info()?["revocations"].clone();
    println!("revocations: {}", serde_json::to_string(&total)?);
    if before != after {
        bail!("clients that were killed left something: {before:?} became {after:?}");
    }
    Ok(())
}

fn live_and_die(nursery: &Nursery, scratch: &ScratchMount, random: &mut Random, clients: u64, most: usize) -> Result<()> {
    let mut crowd: Vec<(Instant, Worker)> = Vec::new();
    for _ in 0..clients {
        if crowd.len() >= most {
            let victim = random.below(most as u64) as usize;
            let (dies, worker) = crowd.swap_remove(victim);
            thread::sleep(dies.saturating_duration_since(Instant::now()));
            // Dropping it kills it with SIGKILL and waits.
            drop(worker);
        }
        let path = scratch.join(&format!("file{}", random.below(FILES)));
        let life = Duration::from_micros(random.below(LIFE_US));
        let worker = nursery.start(NOBODY, &words!["wander", path, random.bits().to_string()])?;
        crowd.push((Instant::now() + life, worker));
    }
    Ok(())
}

/// The counts once nothing is mapped any more, and, where given, once they are what is expected. A server that does not
/// come to that gives what it has in the end.
fn settled(scratch: &ScratchMount, expected: Option<&Counts>) -> Result<Counts> {
    let start = Instant::now();
    loop {
        let now = counts(scratch)?;
        let quiet = now["sessions"] == 0 && now["windows"] == 0;
        if (quiet && expected.is_none_or(|expected| *expected == now)) || start.elapsed() > PATIENCE {
            return Ok(now);
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn counts(scratch: &ScratchMount) -> Result<Counts> {
    let info = scratch.info()?;
    let number = |name: &str| info[name].as_u64().with_context(|| format!("info.json has `{name}`"));
    let mut counts = Counts::new();
    for name in ["sessions", "contexts", "mappings", "windows", "windows_held", "pins"] {
        counts.insert(name.to_owned(), number(name)?);
    }
    counts.insert("aperture bytes".to_owned(), info["aperture"]["used_bytes"].as_u64().context("an aperture")?);
    let server = u32::try_from(scratch.server_pid()?)?;
    counts.insert("server fds".to_owned(), descriptors(server)?);
    counts.insert("guardian fds".to_owned(), descriptors(guardian_of(server)?)?);
    Ok(counts)
}

fn descriptors(pid: u32) -> Result<u64> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count() as u64)
}

/// The server's only child.
fn guardian_of(server: u32) -> Result<u32> {
    for entry in fs::read_dir(format!("/proc/{server}/task"))? {
        let children = fs::read_to_string(entry?.path().join("children")).unwrap_or_default();
        if let Some(child) = children.split_whitespace().next() {
            return Ok(child.parse()?);
        }
    }
    bail!("server {server} has no guardian")
}

/// The child: maps, reads, writes and unmaps at random, some of it without ever acknowledging, until it is killed.
///
/// # Errors
/// When a call fails.
pub fn wander(path: &Path, seed: u64) -> Result<()> {
    die_with_parent()?;
    let mut random = Random::new(seed);
    let directory = path.parent().context("a file is in a directory")?;
    let file = File::open_with(path, fs::OpenOptions::new().read(true).write(true))?;
    let options = SessionOptions { acknowledge: !random.one_in(4) };
    let session = Session::open_with(directory, ImporterSpec::cpu(), options)?;
    let mut held = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let start = random.below(FILE_BYTES / 4096) * 4096;
        let length = (1 + random.below(600)) * 4096;
        let end = (start + length).min(FILE_BYTES);
        let flags = if random.one_in(2) { MapFlags::WRITE } else { MapFlags::empty() };
        let mapping = session.map(&file, start..end, flags)?;
        let size = buffer.len().min((end - start) as usize);
        mapping.read_at(start, &mut buffer[..size])?;
        if flags.contains(MapFlags::WRITE) {
            mapping.write_at(start, &buffer[..size])?;
        }
        match random.below(4) {
            0 => held.clear(),
            1 => drop(mapping.unmap()?),
            _ => held.push(mapping),
        }
    }
}
