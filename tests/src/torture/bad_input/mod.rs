//! Garbage to everything that takes input: ioctls, the grant socket, images, mount points; and a full device.
//! The answer is a clear error, nothing is lost, and the server lives.

mod image;
mod ioctls;
mod mountpoint;
mod run;
mod socket;
mod space;

use std::fs;

use anyhow::{Context, Result, bail, ensure};

pub use image::images;
pub use ioctls::fuzz as fuzz_ioctls;
pub use mountpoint::mountpoints;
pub use socket::fuzz as fuzz_socket;
pub use space::{exact_room, full_device, full_of_metadata};

use super::worker::{NOBODY, Nursery, shared_file};
use crate::{Random, ScratchMount, words};

/// Garbage to every ioctl on every kind of file.
///
/// # Errors
/// When the server does not survive it, or a file changes.
pub fn ioctls(seed: u64, count: u64) -> Result<()> {
    with_clients(seed, count, "fuzz-ioctls", &[])
}

/// Garbage to the grant socket.
///
/// # Errors
/// When the server does not survive it.
pub fn sockets(seed: u64, count: u64) -> Result<()> {
    with_clients(seed, count, "fuzz-socket", &["-o", "grants=socket"])
}

/// Runs a fuzzing child as root and as nobody beside a good client, which must not notice.
fn with_clients(seed: u64, count: u64, child: &str, options: &[&str]) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let log = directory.path().join("server.log");
    let log = log.to_str().context("the path is text")?;
    let mut scratch = ScratchMount::new("64M", &[options, &["--log", log]].concat())?;
    let nursery = Nursery::new(&scratch)?;
    let path = scratch.join("file");
    let mut content = vec![0; 3 << 20];
    Random::new(seed).fill(&mut content);
    shared_file(&path, &content)?;
    let witness = scratch.join("witness");
    shared_file(&witness, &content)?;
    for uid in [0, NOBODY] {
        let good = nursery.start(uid, &words!["hold-library", &witness])?;
        good.expect("ready")?;
        let fuzzer = nursery.start(uid, &words![child, &path, seed.to_string(), count.to_string()])?;
        println!("{child} as {uid}: {}", fuzzer.expect("done")?);
        ensure!(!good.has_ended()?, "a good client ended");
        ensure!(scratch.alive(), "the server died");
        ensure!(fs::read(&path)? == content && fs::read(&witness)? == content, "a file was changed");
        let fresh = nursery.start(uid, &words!["hold-library", &witness])?;
        fresh.expect("ready").context("a client that comes afterwards")?;
    }
    scratch.umount()?;
    scratch.fsck()?;
    no_panic(&fs::read_to_string(log)?)
}

/// Panics are caught in the server; each is a bug all the same.
fn no_panic(text: &str) -> Result<()> {
    match text.lines().find(|line| line.contains("panicked") || line.contains("internal error")) {
        Some(line) => bail!("a panic: {line}"),
        None => Ok(()),
    }
}
