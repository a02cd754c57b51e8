//! Device memory between processes and users of a real mount: who may reach what, limits, pressure, and the end of an
//! owner.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use peerfs_abi::devmem::{self, device_memory_call};
use peerfs_abi::{ABI_VERSION, MapFlags, Trigger};
use peerfs_client::{Attestation, DeviceMemory, Error, File, ImporterSpec, Mapping, Session};
use peerfs_conformance::kit::raw::RawSession;
use peerfs_conformance::kit::worker::{NOBODY, Nursery, PATIENCE, SOMEBODY, Worker, die_with_parent, hear, say};
use serde_json::Value;

use crate::{ScratchMount, peerfs, words};

const MIB: u64 = 1 << 20;
/// More than any allocation here.
const SIZE_MAX: usize = 9 << 20;
const OPTIONS: &str = "devmem=8M,devmem_main=6M,devmem_user_limit=12M,devmem_process_limit=8M";

/// A process that does with device memory what it is told.
struct Puppet(Worker);

impl Puppet {
    fn start(scratch: &ScratchMount, nursery: &Nursery, uid: u32) -> Result<Puppet> {
        let worker = nursery.start(uid, &words!["device-memory", scratch.path()])?;
        worker.expect("ready")?;
        Ok(Puppet(worker))
    }

    /// What it answers.
    fn ask(&mut self, command: &str) -> Result<String> {
        self.0.tell(command)?;
        self.0.line()?.with_context(|| format!("it ended over `{command}`"))
    }

    fn must(&mut self, command: &str, answer: &str) -> Result<()> {
        let found = self.ask(command)?;
        ensure!(found == answer, "`{command}` gave `{found}` instead of `{answer}`");
        Ok(())
    }

    fn refused(&mut self, command: &str, errno: Errno) -> Result<()> {
        self.must(command, &format!("error {errno:?}"))
    }

    fn allocate(&mut self, bytes: u64, mode: u32) -> Result<u64> {
        let answer = self.ask(&format!("allocate {bytes} {mode}"))?;
        let id = answer.strip_prefix("allocated ").with_context(|| answer.clone())?;
        Ok(id.parse()?)
    }
}

fn mounted(options: &str) -> Result<(ScratchMount, Nursery)> {
    let scratch = ScratchMount::new("32M", &["-o", options])?;
    let nursery = Nursery::new(&scratch)?;
    Ok((scratch, nursery))
}

fn report(scratch: &ScratchMount) -> Result<Value> {
    Ok(serde_json::from_slice(&std::fs::read(scratch.join(".peerfs/devmem.json"))?)?)
}

/// Everything is free, nothing is mapped.
fn ensure_returned(scratch: &ScratchMount) -> Result<()> {
    let record = report(scratch)?;
    ensure!(record["free_bytes"] == record["device_bytes"] && record["free_runs"] == 1, "{record:#}");
    ensure!(record["main_bytes_used"] == 0 && record["users"] == serde_json::json!([]), "{record:#}");
    let info = scratch.info()?;
    ensure!(info["windows"] == 0 && info["mappings"] == 0, "{info:#}");
    Ok(())
}

/// Importers of other processes and users map what a session allocated, where its permissions allow.
///
/// # Errors
/// When a byte, a path or a permission is wrong.
pub fn device_to_device() -> Result<()> {
    let (mut scratch, nursery) = mounted(OPTIONS)?;
    let start = |uid| Puppet::start(&scratch, &nursery, uid);
    let (mut owner, mut friend, mut stranger) = (start(NOBODY)?, start(NOBODY)?, start(SOMEBODY)?);
    let shared = owner.allocate(3 * MIB, 0o644)?;
    let private = owner.allocate(MIB, 0o600)?;
    let all = 3 * MIB;
    owner.must(&format!("fill {shared} 17"), "filled")?;
    friend.must(&format!("open {shared} w"), "opened")?;
    friend.must(&format!("map {shared} w"), &format!("mapped {all} 0"))?;
    friend.must(&format!("load {shared}"), &format!("loaded 17 {all} 0"))?;
    friend.must(&format!("store {shared} 18"), &format!("stored {all} 0"))?;
    owner.must(&format!("read {shared}"), "read 18")?;
    owner.must(&format!("map {shared} w"), &format!("mapped {all} 0"))?;
    owner.must(&format!("store {shared} 19"), &format!("stored {all} 0"))?;
    friend.must(&format!("load {shared}"), &format!("loaded 19 {all} 0"))?;
    stranger.refused(&format!("open {shared} w"), Errno::EACCES)?;
    stranger.refused(&format!("open {private} r"), Errno::EACCES)?;
    stranger.must(&format!("open {shared} r"), "opened")?;
    stranger.must(&format!("map {shared} r"), &format!("mapped {all} 0"))?;
    stranger.must(&format!("load {shared}"), &format!("loaded 19 {all} 0"))?;
    stranger.must(&format!("map {shared} w"), &format!("mapped 0 {all}"))?;
    friend.refused(&format!("release {shared}"), Errno::EACCES)?;
    commands(&scratch, shared, 3)?;
    owner.must(&format!("free {shared}"), "freed")?;
    for other in [&mut friend, &mut stranger] {
        other.refused(&format!("read {shared}"), Errno::ENOENT)?;
        other.refused(&format!("open {shared} r"), Errno::ENOENT)?;
    }
    drop((owner, friend, stranger));
    await_returned(&scratch)?;
    scratch.umount()
}

/// The commands take device memory like a file.
fn commands(scratch: &ScratchMount, id: u64, mappings: usize) -> Result<()> {
    let file = scratch.join(&format!(".peerfs/devmem-{id}"));
    let run = |arguments: &[&std::ffi::OsStr]| -> Result<Value> {
        let output = Command::new(peerfs()).args(arguments).arg("--json").output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    };
    let mapped = run(&["map".as_ref(), file.as_os_str(), "--write".as_ref()])?;
    ensure!(mapped["bytes_direct"] == 3 * MIB && mapped["bytes_fallback"] == 0, "{mapped:#}");
    run(&["query".as_ref(), file.as_os_str()])?;
    let shown = run(&["devmem".as_ref(), scratch.path().as_os_str()])?;
    ensure!(shown["allocations"][0]["id"] == id && shown["allocations"][0]["mapped"] == true, "{shown:#}");
    ensure!(shown["users"][0]["uid"] == NOBODY && shown["users"][0]["device_bytes"] == 4 * MIB, "{shown:#}");
    let ledger = run(&["mappings".as_ref(), scratch.path().as_os_str()])?;
    ensure!(ledger["mappings"].as_array().is_some_and(|list| list.len() >= mappings), "{ledger:#}");
    let text = Command::new(peerfs()).arg("devmem").arg(scratch.path()).output()?;
    let text = String::from_utf8(text.stdout)?;
    ensure!(text.contains(&format!("devmem-{id}")) && text.contains("4.0 MiB free of 8.0 MiB"), "{text}");
    Ok(())
}

/// Limits of processes and users hold, and what is not to be had is refused by name.
///
/// # Errors
/// When a limit does not hold, or a refusal is another than expected.
pub fn limits() -> Result<()> {
    let (mut scratch, nursery) = mounted(OPTIONS)?;
    let start = |uid| Puppet::start(&scratch, &nursery, uid);
    let (mut first, mut second, mut third) = (start(NOBODY)?, start(NOBODY)?, start(SOMEBODY)?);
    first.refused("allocate 0 384", Errno::EINVAL)?;
    first.refused(&format!("allocate {} 384", 9 * MIB), Errno::EFBIG)?;
    first.refused("allocate 4096 2541", Errno::EINVAL)?;
    let large = first.allocate(7 * MIB, 0o600)?;
    first.refused(&format!("allocate {} 384", 2 * MIB), Errno::EDQUOT)?;
    first.refused(&format!("grow {large} {}", 8 * MIB + 4096), Errno::EFBIG)?;
    first.must(&format!("grow {large} {}", 8 * MIB), "grown")?;
    let more = second.allocate(4 * MIB, 0o600)?;
    second.refused("allocate 4096 384", Errno::EDQUOT)?;
    let other = third.allocate(2 * MIB, 0o600)?;
    third.refused(&format!("allocate {} 384", 6 * MIB), Errno::ENOMEM)?;
    second.must(&format!("free {more}"), "freed")?;
    second.allocate(4 * MIB, 0o600)?;
    third.must(&format!("check {other} 0"), "checked")?;
    drop((first, second, third));
    await_returned(&scratch)?;
    scratch.umount()?;
    scratch.mount(&[])?;
    let mut none = Puppet::start(&scratch, &nursery, NOBODY)?;
    none.refused("allocate 4096 384", Errno::ENODEV)?;
    none.refused("open 1 r", Errno::ENOENT)?;
    drop(none);
    scratch.umount()
}

/// Under pressure memory moves to main memory under live mappings, is served from there, and comes back.
///
/// # Errors
/// When a byte or a path is wrong.
pub fn pressure() -> Result<()> {
    let (mut scratch, nursery) = mounted(OPTIONS)?;
    let start = |uid| Puppet::start(&scratch, &nursery, uid);
    let (mut first, mut second) = (start(NOBODY)?, start(SOMEBODY)?);
    let (half, all) = (4 * MIB, 8 * MIB);
    let memory = first.allocate(half, 0o600)?;
    first.must(&format!("map {memory} w"), &format!("mapped {half} 0"))?;
    first.must(&format!("store {memory} 33"), &format!("stored {half} 0"))?;
    let wanted = second.allocate(all, 0o600)?;
    second.must(&format!("map {wanted} w"), &format!("mapped {all} 0"))?;
    second.must(&format!("check {wanted} 0"), "checked")?;
    second.must(&format!("store {wanted} 34"), &format!("stored {all} 0"))?;
    first.must(&format!("migrated {memory}"), "migrated true")?;
    first.must(&format!("load {memory}"), &format!("loaded 33 0 {half}"))?;
    first.must(&format!("store {memory} 35"), &format!("stored 0 {half}"))?;
    first.must(&format!("map {memory} w"), &format!("mapped 0 {half}"))?;
    let info = scratch.info()?;
    ensure!(info["device_memory"]["moved_out"] == 1 && info["device_memory"]["main_bytes_used"] == half, "{info:#}");
    let relocated = |record: &&Value| record["trigger"] == Trigger::Relocation.name();
    ensure!(info["revocations"].as_array().is_some_and(|list| list.iter().any(|r| relocated(&r))), "{info:#}");
    second.must(&format!("free {wanted}"), "freed")?;
    first.must(&format!("map {memory} w"), &format!("mapped {half} 0"))?;
    first.must(&format!("load {memory}"), &format!("loaded 35 {half} 0"))?;
    first.must(&format!("migrated {memory}"), "migrated false")?;
    drop((first, second));
    await_returned(&scratch)?;
    scratch.umount()
}

/// An owner that is killed leaves nothing, and nobody else keeps what it had.
///
/// # Errors
/// When something stays.
pub fn killed_owner() -> Result<()> {
    let (mut scratch, nursery) = mounted(OPTIONS)?;
    let mut importer = Puppet::start(&scratch, &nursery, SOMEBODY)?;
    for round in 0..3 {
        let mut owner = Puppet::start(&scratch, &nursery, NOBODY)?;
        let ids = [owner.allocate(3 * MIB, 0o666)?, owner.allocate(5 * MIB, 0o666)?];
        for id in ids {
            owner.must(&format!("check {id} 0"), "checked")?;
            owner.must(&format!("fill {id} {}", round + 1), "filled")?;
            importer.must(&format!("open {id} w"), "opened")?;
            let answer = importer.ask(&format!("map {id} w"))?;
            ensure!(answer.ends_with(" 0"), "not all direct: {answer}");
        }
        kill(Pid::from_raw(owner.0.pid().cast_signed()), Signal::SIGKILL)?;
        owner.0.wait()?;
        await_freed(&scratch)?;
        for id in ids {
            importer.refused(&format!("load {id}"), Errno::ENOENT)?;
            importer.must(&format!("close {id}"), "closed")?;
        }
        ensure_returned(&scratch)?;
    }
    drop(importer);
    scratch.umount()
}

/// The kernel tells the server of a process's end when it gets to it.
fn await_freed(scratch: &ScratchMount) -> Result<()> {
    let start = Instant::now();
    while report(scratch)?["users"] != serde_json::json!([]) {
        ensure!(start.elapsed() < PATIENCE, "device memory of a dead process stays: {:#}", report(scratch)?);
    }
    Ok(())
}

fn await_returned(scratch: &ScratchMount) -> Result<()> {
    await_freed(scratch)?;
    let start = Instant::now();
    while scratch.info()?["mappings"] != 0 {
        ensure!(start.elapsed() < PATIENCE, "mappings of dead processes stay: {:#}", scratch.info()?);
    }
    ensure_returned(scratch)
}

/// The child: says `ready`, then answers each line of commands with one of its own.
///
/// # Errors
/// When it is told nonsense.
pub fn obey(directory: &Path) -> Result<()> {
    die_with_parent()?;
    let session = Session::open(directory, ImporterSpec::cpu())?;
    let mut hands =
        Hands { directory: directory.to_owned(), session, own: HashMap::new(), files: HashMap::new(), mappings: HashMap::new() };
    say("ready")?;
    while let Ok(line) = hear() {
        match hands.perform(&line) {
            Ok(answer) => say(answer)?,
            Err(error) => match error.downcast_ref::<Error>() {
                Some(Error::System { source, .. }) => {
                    say(format!("error {:?}", Errno::from_raw(source.raw_os_error().unwrap_or(0))))?;
                }
                _ => bail!("`{line}`: {error:#}"),
            },
        }
    }
    Ok(())
}

struct Hands {
    directory: PathBuf,
    session: Session,
    own: HashMap<u64, DeviceMemory>,
    files: HashMap<u64, File>,
    mappings: HashMap<u64, Mapping>,
}

impl Hands {
    fn perform(&mut self, line: &str) -> Result<String> {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |at: usize| -> Result<u64> { Ok(words.get(at).context("a number is missing")?.parse()?) };
        let writable = words.get(2) == Some(&"w");
        let (id, second) = (number(1)?, number(2).unwrap_or(0));
        Ok(match words[0] {
            "allocate" => {
                let memory = self.session.allocate_device_memory_with_mode(id, second as u32)?;
                let id = memory.id();
                self.files.insert(id, memory.file().clone());
                self.own.insert(id, memory);
                format!("allocated {id}")
            }
            "open" => {
                self.files.insert(id, self.session.open_device_memory(id, writable)?);
                "opened".into()
            }
            "close" => {
                self.mappings.remove(&id);
                self.files.remove(&id);
                "closed".into()
            }
            "fill" => {
                self.owned(id)?.write_at(0, &vec![second as u8; self.owned(id)?.bytes()? as usize])?;
                "filled".into()
            }
            "read" => format!("read {}", self.read(id)?),
            "check" => {
                let found = self.read(id)?;
                if found == second.to_string() { "checked".into() } else { format!("found {found}") }
            }
            "map" => {
                let flags = if writable { MapFlags::WRITE } else { MapFlags::empty() };
                let mapping = self.session.map(self.file(id)?, .., flags)?;
                let direct: u64 =
                    mapping.segments().iter().filter(|segment| segment.reason.is_none()).map(|segment| segment.length).sum();
                let all = mapping.range().end;
                self.mappings.insert(id, mapping);
                format!("mapped {direct} {}", all - direct)
            }
            "load" => {
                let mapping = self.mapping(id)?;
                let mut bytes = vec![0; mapping.range().end as usize];
                let moved = mapping.read_at(0, &mut bytes)?;
                format!("loaded {} {}", uniform(&bytes), paths(&moved))
            }
            "store" => {
                let mapping = self.mapping(id)?;
                let moved = mapping.write_at(0, &vec![second as u8; mapping.range().end as usize])?;
                format!("stored {}", paths(&moved))
            }
            "grow" => {
                self.owned(id)?.grow(second)?;
                "grown".into()
            }
            "migrated" => format!("migrated {}", self.owned(id)?.is_migrated()?),
            "free" => {
                self.owned(id)?;
                if let Some(memory) = self.own.remove(&id) {
                    memory.free()?;
                }
                "freed".into()
            }
            // Somebody else's, past the library, which offers no such thing.
            "release" => self.release(id)?,
            other => bail!("not a command: {other}"),
        })
    }

    fn release(&self, id: u64) -> Result<String> {
        let raw = RawSession::open(&self.directory)?;
        let call = device_memory_call::FREE;
        let mut argument = devmem::DeviceMemory { abi_version: ABI_VERSION, call, id, bytes: 0, mode: 0, migrated: 0 };
        Ok(match peerfs_sys::ioctl(&raw.session, devmem::DEVICE_MEMORY, &mut argument) {
            Ok(_) => "freed".into(),
            Err(error) => format!("error {:?}", Errno::from_raw(error.raw_os_error().unwrap_or(0))),
        })
    }

    fn file(&self, id: u64) -> Result<&File> {
        self.files.get(&id).context("it is not open")
    }

    fn owned(&self, id: u64) -> Result<&DeviceMemory> {
        self.own.get(&id).context("it is somebody else's")
    }

    fn mapping(&self, id: u64) -> Result<&Mapping> {
        self.mappings.get(&id).context("it is not mapped")
    }

    fn read(&self, id: u64) -> Result<String> {
        let mut bytes = vec![0; SIZE_MAX];
        let count = self.file(id)?.read_at(0, &mut bytes)?;
        Ok(uniform(&bytes[..count]))
    }
}

fn paths(moved: &Attestation) -> String {
    format!("{} {}", moved.direct(), moved.fallback)
}

/// The one byte that all of it is.
fn uniform(bytes: &[u8]) -> String {
    match bytes {
        [first, rest @ ..] if rest.iter().all(|byte| byte == first) => first.to_string(),
        _ => "mixed".into(),
    }
}
