//! Ranges that are taken back under a transfer.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{LBA, MIB, Scene, refs, run, until_in_flight};
use crate::lab::channel::Namespace;
use crate::lab::guest::{Guest, PORT_A, PORT_SLOW, contents};

pub fn truncate(guest: &mut Guest<'_>) -> Result<()> {
    let length = 4 * MIB;
    let scene = Scene::new(guest, PORT_A, "pmr", PORT_SLOW)?;
    let seed = guest.seed();
    let path = scene.file("file", seed, length)?;
    let other = scene.file("other", seed + 1, 2 * MIB)?;
    // What is written next has only the blocks that the truncation gives up.
    let filler = full(&scene)?;
    let copying = guest.start(&refs(&scene.copy_in(&path, 0, length)))?;
    let bystander = guest.start(&refs(&scene.copy_out(&other, 64 * MIB / LBA)))?;
    until_in_flight(&scene, 4)?;
    let begun = Instant::now();
    OpenOptions::new().write(true).open(&path)?.set_len(0)?;
    let cut = begun.elapsed();
    let next = File::create(scene.point.join("next"))?;
    let expected = contents(seed + 2, length as usize);
    let mut written = 0;
    // At once, while what was under way could still land in these blocks. The copy goes on by fallback and takes some, too.
    File::open(&path)?.sync_all()?;
    while let Ok(count @ 1..) = next.write_at(&expected[written..], written as u64) {
        written += count;
    }
    next.sync_all()?;
    drop((next, filler));
    ensure!(written as u64 >= MIB, "only {written} bytes were given up");
    let copied = copying.end()?;
    let beside = bystander.end()?.map_err(anyhow::Error::msg).context("the bystander")?;
    let beside: Value = serde_json::from_str(&beside)?;
    ensure!(beside["bytes_direct_bar"] == 2 * MIB && beside["bytes_revoked"] == 0, "the bystander lost something: {beside}");
    guest.holds(Namespace::Slow, 64 * MIB, 2 * MIB, seed + 1)?;
    let found = fs::read(scene.point.join("next"))?;
    let damaged = found.chunks(4096).zip(expected.chunks(4096)).filter(|(found, expected)| found != expected).count();
    ensure!(found.len() == written && damaged == 0, "{damaged} blocks of the next file have the importer's bytes");
    guest.note(format!("truncated under a transfer after {} ms; the copy: {}", cut.as_millis(), last_line(&copied)))?;
    guest.umount(&scene.point)
}

/// A file that takes all room of the volume but a little for metadata.
fn full(scene: &Scene) -> Result<File> {
    let filler = File::create(scene.point.join("filler"))?;
    let free = nix::sys::statvfs::statvfs(&scene.point)?;
    let mut step = free.blocks_available() * free.fragment_size();
    let mut end = 0;
    while step >= 4096 {
        match nix::fcntl::fallocate(&filler, nix::fcntl::FallocateFlags::empty(), end as i64, step as i64) {
            Ok(()) => end += step,
            Err(_) => step /= 2,
        }
    }
    ensure!(end > MIB, "the volume was full before");
    filler.set_len(end - MIB / 4)?;
    filler.sync_all()?;
    Ok(filler)
}

fn last_line(said: &Result<String, String>) -> String {
    match said {
        Ok(report) => serde_json::from_str::<Value>(report).map_or_else(|_| report.clone(), |report| report.to_string()),
        Err(error) => error.trim().to_owned(),
    }
}

pub fn overwrite(guest: &mut Guest<'_>) -> Result<()> {
    let length = 4 * MIB;
    let scene = Scene::new(guest, PORT_A, "pmr", PORT_SLOW)?;
    let seed = guest.seed();
    let path = scene.file("file", seed, length)?;
    let copying = guest.start(&refs(&scene.copy_out(&path, 0)))?;
    until_in_flight(&scene, 2)?;
    let after = contents(seed + 1, length as usize);
    let begun = Instant::now();
    OpenOptions::new().write(true).open(&path)?.write_all_at(&after, 0)?;
    let took = begun.elapsed();
    let report = copying.end()?.map_err(anyhow::Error::msg)?;
    let report: Value = serde_json::from_str(&report)?;
    ensure!(report["bytes"] == length && report["bytes_revoked"] != 0, "nothing was revoked under way: {report}");
    ensure!(fs::read(&path)? == after, "the file lost the write");

    let before = contents(seed, length as usize);
    let back = scene.point.join("back");
    run(guest, &scene.copy_in(&back, 0, length))?;
    let copied = fs::read(&back)?;
    let neither = |at: &usize| {
        let block = &copied[at * 4096..(at + 1) * 4096];
        block != &before[at * 4096..(at + 1) * 4096] && block != &after[at * 4096..(at + 1) * 4096]
    };
    let wrong = (0..copied.len() / 4096).filter(neither).count();
    ensure!(copied.len() == before.len() && wrong == 0, "{wrong} blocks are of neither version");
    guest.note(format!(
        "overwritten under a transfer in {} ms; {} bytes were revoked",
        took.as_millis(),
        report["bytes_revoked"]
    ))?;
    guest.umount(&scene.point)
}
