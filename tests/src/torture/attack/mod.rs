//! A hostile user who was granted a mapping, to read or to write, tries to get more: more access, more
//! time, other bytes. Nothing of it may succeed, and nobody else may notice.

mod holder;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

pub use holder::{heir, hold, thief};

use super::attempts::SECRET;
use super::worker::{NOBODY, Nursery, SOMEBODY, Worker, shared_file};
use crate::{Random, ScratchMount, words};

const DEADLINE: Duration = Duration::from_millis(200);
/// What a busy machine may add to it.
const TOLERANCE: Duration = Duration::from_secs(3);
/// Ends inside a block of the second chunk.
const FILE_BYTES: usize = (2 << 20) + 100_100;
const HOLE: (i64, i64) = (64 << 12, 64 << 12);

/// Attacks on a read grant and on a write grant; `options` say how grants are handed out.
///
/// # Errors
/// When an attack succeeds.
pub fn all(seed: u64, options: &[&str]) -> Result<()> {
    let deadline = format!("deadline_ms={}", DEADLINE.as_millis());
    let options = [options, &["-o", &deadline]].concat();
    let mut scratch = ScratchMount::new("128M", &options)?;
    let nursery = Nursery::new(&scratch)?;
    let secret = plant_secrets(&scratch)?;
    for access in ["read", "write"] {
        one(&scratch, &nursery, access, seed).with_context(|| format!("a {access} grant, options {options:?}"))?;
        ensure!(scratch.alive(), "the server died");
        ensure!(fs::read(&secret)?.iter().all(|byte| *byte == SECRET), "another file was changed");
    }
    scratch.umount()?;
    scratch.fsck()
}

/// One secret that lives, and free space full of another.
fn plant_secrets(scratch: &ScratchMount) -> Result<std::path::PathBuf> {
    let content = vec![SECRET; 24 << 20];
    let (living, dead) = (scratch.join("secret"), scratch.join("dead-secret"));
    for path in [&dead, &living] {
        shared_file(path, &content)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    }
    fs::remove_file(&dead)?;
    File::open(scratch.path())?.sync_all()?;
    Ok(living)
}

fn one(scratch: &ScratchMount, nursery: &Nursery, access: &str, seed: u64) -> Result<()> {
    let path = scratch.join(&format!("target-{access}"));
    let content = make_target(&path, seed)?;
    let mut attacker = nursery.start(NOBODY, &words!["attack", access, &path])?;

    let offer = attacker.expect("offer")?;
    let mut arguments = words!["steal", access, &path].to_vec();
    arguments.extend(offer.split(' ').map(Into::into));
    verdicts(&nursery.start(NOBODY, &arguments)?, "done")?;

    attacker.tell("take")?;
    verdicts(&attacker, "ready")?;
    attacker.tell("pass")?;
    let passed = attacker.receive_descriptor()?;
    let heir = nursery.start_with(SOMEBODY, &words!["inherit", access], passed)?;
    verdicts(&heir, "ready")?;

    let start = Instant::now();
    let revoked = peerfs_client::File::open(&path)?.revoke(..)?;
    let took = start.elapsed();
    println!("a {access} grant: {} cut after {took:?} (deadline {DEADLINE:?})", revoked.grants);
    ensure!(revoked.enforced >= 1, "the attacker acknowledges nothing, yet nothing was enforced");
    ensure!(took < DEADLINE + TOLERANCE, "the cut took {took:?}");
    attacker.tell("after")?;
    verdicts(&attacker, "done")?;
    ensure!(attacker.wait()?.success(), "the attacker failed");
    verdicts(&heir, "done")?;
    ensure!(fs::read(&path)? == content, "the file has other bytes");
    vandalism(scratch, nursery, access, &path)
}

/// Bytes 1 to 97, a hole, an end inside a block. What it returns is what the file holds.
fn make_target(path: &std::path::Path, seed: u64) -> Result<Vec<u8>> {
    let shift = Random::new(seed).below(97) as usize;
    let mut content: Vec<u8> = (0..FILE_BYTES).map(|at| ((at + shift) % 97) as u8 + 1).collect();
    shared_file(path, &content)?;
    let file = OpenOptions::new().write(true).open(path)?;
    let mode = nix::fcntl::FallocateFlags::FALLOC_FL_PUNCH_HOLE | nix::fcntl::FallocateFlags::FALLOC_FL_KEEP_SIZE;
    nix::fcntl::fallocate(&file, mode, HOLE.0, HOLE.1)?;
    file.sync_all()?;
    content[HOLE.0 as usize..(HOLE.0 + HOLE.1) as usize].fill(0);
    Ok(content)
}

/// A holder destroys what it was given as far as it can: its own file may suffer, if it may write it; the server must not.
fn vandalism(scratch: &ScratchMount, nursery: &Nursery, access: &str, path: &std::path::Path) -> Result<()> {
    let before = fs::read(path)?;
    let mut vandal = nursery.start(NOBODY, &words!["attack", access, path])?;
    vandal.expect("offer")?;
    vandal.tell("vandalise")?;
    vandal.expect("done")?;
    let revoked = peerfs_client::File::open(path)?.revoke(..)?;
    ensure!(revoked.enforced >= 1, "the vandal acknowledges nothing, yet nothing was enforced");
    vandal.tell("end")?;
    vandal.expect("ok")?;
    ensure!(vandal.wait()?.success(), "the vandal failed");
    let after = fs::read(path)?;
    ensure!(access == "write" || after == before, "a holder of a read grant changed the file");
    ensure!(after.len() == before.len() && !after.contains(&SECRET), "the file has bytes of another");
    let file = OpenOptions::new().write(true).open(path)?;
    file.write_all_at(&before, 0)?;
    file.sync_all()?;
    ensure!(fs::read(path)? == before && scratch.alive(), "the file cannot be written any more");
    Ok(())
}

/// Lines `ok ATTACK` or `BREACH ATTACK: WHAT` up to the line `end`.
fn verdicts(worker: &Worker, end: &str) -> Result<()> {
    let mut withstood = 0;
    loop {
        let line = worker.line()?.with_context(|| format!("it ended before saying `{end}`"))?;
        match line.split_once(' ') {
            Some(("ok", _)) => withstood += 1,
            Some(("BREACH", _)) => bail!("{line}"),
            _ if line == end => {
                println!("  {withstood} attacks withstood");
                return Ok(());
            }
            _ => bail!("`{line}` is unexpected"),
        }
    }
}
