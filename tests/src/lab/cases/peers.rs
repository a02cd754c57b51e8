//! A controller as importer: its DMA goes to and from the BAR of another.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use peerfs_blockdev::nvme::{Direction, DmaEngine};
use peerfs_blockdev::{BlockDeviceExt, DeviceSpec, OpenMode, Run, WindowSpec};
use peerfs_sys::{FileView, Sharing};
use serde_json::Value;

use crate::lab::channel::Namespace;
use crate::lab::guest::{Controller, Guest, PORT_A, PORT_B, PORT_SLOW, contents, text, until};

/// Of the controllers' namespaces, bytes.
pub(super) const LBA: u64 = 512;
pub(super) const MIB: u64 = 1 << 20;

/// A mounted volume whose blocks are in a BAR, and an importer.
pub(super) struct Scene {
    pub(super) point: PathBuf,
    pub(super) importer: Controller,
}

impl Scene {
    /// A new volume on a part of a controller.
    pub(super) fn new(guest: &mut Guest<'_>, storage: Controller, part: &str, importer: Controller) -> Result<Scene> {
        guest.bind(storage)?;
        guest.bind(importer)?;
        let device = storage.part(part);
        guest.peerfs(&["mkfs", "--force", &device])?;
        let point = guest.mount_with(&device, &["-o", &format!("importer=nvme:{}", importer.address)])?;
        Ok(Scene { point, importer })
    }

    fn arguments(&self, way: &str, path: &Path, lba: u64) -> Vec<String> {
        let importer = format!("nvme:{}", self.importer.address);
        ["copy", &text(path), way, &importer, "--lba", &lba.to_string(), "--json"].map(str::to_owned).into()
    }

    /// `peerfs copy` out of a file.
    pub(super) fn copy_out(&self, path: &Path, lba: u64) -> Vec<String> {
        self.arguments("--to-importer", path, lba)
    }

    /// `peerfs copy` into a file.
    pub(super) fn copy_in(&self, path: &Path, lba: u64, length: u64) -> Vec<String> {
        let mut arguments = self.arguments("--from-importer", path, lba);
        arguments.extend(["--length".to_owned(), length.to_string()]);
        arguments
    }

    /// A synced file with the bytes of a seed.
    pub(super) fn file(&self, name: &str, seed: u64, length: u64) -> Result<PathBuf> {
        let path = self.point.join(name);
        fs::write(&path, contents(seed, length as usize))?;
        File::open(&path)?.sync_all()?;
        Ok(path)
    }
}

/// Runs a copy that must succeed, and answers its report.
pub(super) fn run(guest: &Guest<'_>, arguments: &[String]) -> Result<Value> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    Ok(serde_json::from_str(&guest.peerfs(&arguments)?)?)
}

pub(super) fn refs(arguments: &[String]) -> Vec<&str> {
    arguments.iter().map(String::as_str).collect()
}

fn never_direct(path: &Path) -> Result<()> {
    Ok(peerfs_sys::set_xattr(path, peerfs_abi::names::XATTR_DIRECT, b"never")?)
}

fn megabytes_per_second(report: &Value) -> f64 {
    report["bytes_per_second"].as_f64().unwrap_or_default() / 1e6
}

pub fn copy(guest: &mut Guest<'_>) -> Result<()> {
    let length = 64 * MIB;
    let scene = Scene::new(guest, PORT_A, "pmr", PORT_B)?;
    let seed = guest.seed();
    let path = scene.file("file", seed, length)?;
    let direct = run(guest, &scene.copy_out(&path, 0))?;
    ensure!(direct["bytes_direct_bar"] == length && direct["bytes_fallback"] == 0, "not all went device to device: {direct}");
    guest.holds(Namespace::B, 0, length, seed)?;

    // The other way, over other bytes.
    let back = scene.file("back", seed + 1, length)?;
    let returned = run(guest, &scene.copy_in(&back, 0, length))?;
    ensure!(
        returned["bytes_direct_bar"] == length && returned["bytes_fallback"] == 0,
        "not all came device to device: {returned}"
    );
    ensure!(fs::read(&back)? == contents(seed, length as usize), "the file has other bytes than the namespace");
    // Into a file that is not there yet there is nothing to map.
    let short = 3 * MIB + 1000;
    let fresh = scene.point.join("fresh");
    let report = run(guest, &scene.copy_in(&fresh, 0, short))?;
    ensure!(report["bytes_fallback"] == short, "a hole was mapped: {report}");
    ensure!(fs::read(&fresh)? == contents(seed, length as usize)[..short as usize], "the new file has other bytes");
    // A last block that is not filled, behind what is there.
    let place = length / LBA;
    let report = run(guest, &scene.copy_out(&fresh, place))?;
    ensure!(report["bytes_direct_bar"] == short, "the end of a file went another way: {report}");
    fs::remove_file(&fresh)?;
    odd_ends(guest, &scene, seed)?;

    never_direct(&path)?;
    let fallback = run(guest, &scene.copy_out(&path, 2 * place))?;
    ensure!(
        fallback["bytes_fallback"] == length && fallback["fallback_reason"] == "Policy",
        "a way that is forbidden: {fallback}"
    );
    guest.holds(Namespace::B, 2 * length, length, seed)?;
    never_direct(&back)?;
    let returned_by_fallback = run(guest, &scene.copy_in(&back, 2 * place, length))?;
    ensure!(returned_by_fallback["bytes_fallback"] == length, "a way that is forbidden: {returned_by_fallback}");
    ensure!(fs::read(&back)? == contents(seed, length as usize), "the file has other bytes than the namespace");
    guest.note(format!(
        "64 MiB, MB/s: {:.0} to the importer and {:.0} from it by direct-bar, {:.0} and {:.0} by fallback",
        megabytes_per_second(&direct),
        megabytes_per_second(&returned),
        megabytes_per_second(&fallback),
        megabytes_per_second(&returned_by_fallback)
    ))?;
    refusals(guest, &scene, &path)?;
    guest.umount(&scene.point)
}

/// A file that ends inside a logical block is extended, and what a program stored through a mapping is copied by fallback too.
fn odd_ends(guest: &Guest<'_>, scene: &Scene, seed: u64) -> Result<()> {
    let path = scene.file("odd", seed + 2, 5000)?;
    run(guest, &scene.copy_in(&path, 0, MIB))?;
    let mut expected = contents(seed, MIB as usize);
    ensure!(fs::read(&path)? == expected, "what extends a file is not where it belongs");
    never_direct(&path)?;
    let file = OpenOptions::new().read(true).write(true).open(&path)?;
    let view = FileView::map(&file, 8192, Sharing::Shared, true)?;
    view.write(0, &[9; 100]).map_err(|_| anyhow!("a store"))?;
    expected[..100].fill(9);
    let place = 200 * MIB / LBA;
    run(guest, &scene.copy_out(&path, place))?;
    drop((view, file));
    let back = scene.point.join("odd-back");
    run(guest, &scene.copy_in(&back, place, MIB))?;
    ensure!(fs::read(&back)? == expected, "a store through a mapping was not copied");
    fs::remove_file(&path)?;
    Ok(fs::remove_file(&back)?)
}

/// What cannot be copied is refused with a reason.
fn refusals(guest: &Guest<'_>, scene: &Scene, path: &Path) -> Result<()> {
    let said = guest.refused("peerfs", &refs(&scene.copy_out(path, 512 * MIB / LBA)))?;
    ensure!(said.contains("beyond the end"), "a copy beyond the namespace: {said}");
    let said = guest.refused("peerfs", &["copy", &text(path), "--to-importer", "nvme:0000:09:00.0", "--lba", "0"])?;
    ensure!(said.contains("-o importer=nvme:0000:09:00.0"), "an importer that is none: {said}");
    let said = guest.refused("peerfs", &[&refs(&scene.copy_out(path, 0))[..], &["--offset", "100"]].concat())?;
    ensure!(said.contains("logical block"), "a misaligned offset: {said}");
    Ok(())
}

pub fn windows(guest: &mut Guest<'_>) -> Result<()> {
    let length = 4 * MIB + 4096;
    let scene = Scene::new(guest, PORT_B, "ns1", PORT_A)?;
    let seed = guest.seed();
    let path = scene.file("file", seed, length)?;
    let out = run(guest, &scene.copy_out(&path, 0))?;
    ensure!(out["bytes_direct_bar"] == length, "not all went device to device: {out}");
    guest.holds(Namespace::A, 0, length, seed)?;
    let back = scene.file("back", seed + 1, length)?;
    let into = run(guest, &scene.copy_in(&back, 0, length))?;
    ensure!(into["bytes_direct_bar"] == length, "not all came device to device: {into}");
    ensure!(fs::read(&back)? == contents(seed, length as usize), "the file has other bytes than the namespace");
    guest.umount(&scene.point)
}

/// Until so many transfers are under way. On the slow medium each takes a quarter of a second.
pub(super) fn until_in_flight(scene: &Scene, least: u64) -> Result<()> {
    until("transfers are under way", || {
        let info: Value = serde_json::from_slice(&fs::read(scene.point.join(".peerfs/info.json")).ok()?).ok()?;
        (info["importers"][0]["transfers_in_flight"].as_u64()? >= least).then_some(())
    })
}

pub fn truncate(guest: &mut Guest<'_>) -> Result<()> {
    let length = 4 * MIB;
    let scene = Scene::new(guest, PORT_A, "pmr", PORT_SLOW)?;
    let seed = guest.seed();
    let path = scene.file("file", seed, length)?;
    let other = scene.file("other", seed + 1, 2 * MIB)?;
    // What is written next has only the blocks that the truncation gives up.
    let filler = File::create(scene.point.join("filler"))?;
    let free = nix::sys::statvfs::statvfs(&scene.point)?;
    let free = free.blocks_available() * free.fragment_size();
    nix::fcntl::fallocate(&filler, nix::fcntl::FallocateFlags::empty(), 0, (free - MIB) as i64).context("filling the volume")?;
    filler.sync_all()?;

    let copying = guest.start(&refs(&scene.copy_in(&path, 0, length)))?;
    let bystander = guest.start(&refs(&scene.copy_out(&other, 64 * MIB / LBA)))?;
    until_in_flight(&scene, 4)?;
    let begun = Instant::now();
    OpenOptions::new().write(true).open(&path)?.set_len(0)?;
    let cut = begun.elapsed();
    let next = File::create(scene.point.join("next"))?;
    let expected = contents(seed + 2, length as usize);
    let mut written = 0;
    // The copy goes on by fallback and takes space too.
    while written < expected.len() && next.write_all_at(&expected[written..written + 4096], written as u64).is_ok() {
        written += 4096;
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

pub fn read_lease(guest: &mut Guest<'_>) -> Result<()> {
    const LENGTH: usize = 64 << 10;
    guest.bind(PORT_A)?;
    guest.bind(PORT_B)?;
    let seed = guest.seed();
    let spec: DeviceSpec = PORT_A.part("pmr").parse()?;
    let opened = spec.open(None, OpenMode::ReadWrite, Duration::from_secs(10))?;
    let engine = DmaEngine::open(PORT_B.address.parse()?, 1)?;
    // At the end of both media: other cases have volumes on them.
    let home = opened.device.info().size_bytes - LENGTH as u64;
    let (source, target) = (engine.blocks() - 1024, engine.blocks() - 512);
    opened.device.write_at(home, &contents(seed, LENGTH))?;
    engine.write(source, &contents(seed + 1, LENGTH))?;
    let aperture = opened.aperture.context("the region is an aperture")?;
    let length = LENGTH as u64;
    let run = Run { window_offset: 0, device_offset: home, length };
    let window = aperture.open_window(WindowSpec { owner: 1, length, runs: vec![run], valid_length: length })?;
    let lease = engine.lease(&engine.queue()?, window.clone(), false)?;
    // Whatever the controller says of it.
    let said = lease.start(Direction::ToWindow, source, 0, length)?.finish();
    let mut found = vec![0; LENGTH];
    window.peer_read(0, &mut found)?;
    ensure!(found == contents(seed, LENGTH), "a controller wrote over a lease for reading");
    lease.start(Direction::FromWindow, target, 0, length)?.finish()?;
    let mut read = vec![0; LENGTH];
    for (block, seed) in [(source, seed + 1), (target, seed)] {
        engine.read(block, &mut read)?;
        ensure!(read == contents(seed, LENGTH), "block {block} has {:x?}, not {:x?}", &read[..16], &contents(seed, 16));
    }
    guest.note(format!("a write over a lease for reading was stopped; the controller calls it {said:?}"))
}
