//! Copies in both directions, by every way.

use std::fs::{self, OpenOptions};
use std::path::Path;

use anyhow::{Result, anyhow, ensure};
use peerfs_sys::{FileView, Sharing};
use serde_json::Value;

use super::{LBA, MIB, Scene, refs, run};
use crate::lab::channel::Namespace;
use crate::lab::guest::{Guest, PORT_A, PORT_B, contents, text, until};

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
    let importer = format!("nvme:{}", PORT_B.address);
    let table: Value = serde_json::from_str(&guest.peerfs(&["query", "--json", &text(&path), "--importer", &importer])?)?;
    ensure!(table["bytes_direct"] == length && table["bytes_fallback"] == 0, "the query says {table}");
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
    // The mount takes the importer from the kernel's driver, and gives it back.
    guest.kernel_disk(PORT_A)?;
    let scene = Scene::on(guest, PORT_B, "ns1", PORT_A)?;
    ensure!(PORT_A.driver().as_deref() == Some("vfio-pci"), "the importer's driver is {:?}", PORT_A.driver());
    let seed = guest.seed();
    let path = scene.file("file", seed, length)?;
    let out = run(guest, &scene.copy_out(&path, 0))?;
    ensure!(out["bytes_direct_bar"] == length, "not all went device to device: {out}");
    guest.holds(Namespace::A, 0, length, seed)?;
    let back = scene.file("back", seed + 1, length)?;
    let into = run(guest, &scene.copy_in(&back, 0, length))?;
    ensure!(into["bytes_direct_bar"] == length, "not all came device to device: {into}");
    ensure!(fs::read(&back)? == contents(seed, length as usize), "the file has other bytes than the namespace");
    guest.umount(&scene.point)?;
    until("the kernel's driver has the importer again", || (PORT_A.driver()? == "nvme").then_some(()))
}
