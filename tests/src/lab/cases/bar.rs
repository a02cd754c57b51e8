//! Files are read through the BAR: by the importer inside the server, since no process can be given that memory.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::lab::guest::{A, B, Controller, Guest, text};

/// Length of the file, bytes: two chunks and a part of a block.
const LENGTH: usize = (4 << 20) + 1000;

pub fn windows(guest: &mut Guest<'_>) -> Result<()> {
    for (controller, part, aperture) in [(B, "ns1", "CMB of the controller"), (A, "pmr", "Persistent Memory Region")] {
        read_directly(guest, controller, part, aperture)?;
    }
    Ok(())
}

fn read_directly(guest: &mut Guest<'_>, controller: Controller, part: &str, aperture: &str) -> Result<()> {
    guest.bind(controller)?;
    let device = controller.part(part);
    guest.peerfs(&["mkfs", "--force", &device])?;
    let point = guest.mount(&device)?;
    let info: Value = serde_json::from_str(&guest.peerfs(&["info", "--json", &text(&point)])?)?;
    ensure!(info["aperture"]["name"] == aperture, "the aperture of {device} is {}", info["aperture"]);
    is_on_the_bus(guest, &point, controller, part)?;

    let path = point.join("file");
    let mut contents: Vec<u8> = (0u64..).flat_map(|word| (word ^ guest.seed()).to_le_bytes()).take(LENGTH).collect();
    fs::write(&path, &contents)?;
    all_by_bar(guest, &path, &contents)?;
    // A process is not given the memory, and reads the same.
    let read = map(guest, &path, "cpu")?;
    ensure!(read["fallback_reasons"]["NoGrantObject"] == LENGTH, "an importer in a process got {read}");
    ensure!(read["crc32c"] == checksum(&contents), "an importer in a process read {}", read["crc32c"]);
    // What the filesystem writes is what the BAR shows next.
    contents[5000..9000].fill(7);
    File::options().write(true).open(&path)?.write_all_at(&contents[5000..9000], 5000)?;
    all_by_bar(guest, &path, &contents)?;
    guest.umount(&point)
}

/// The server has found the BAR in sysfs, and judges the other controller's way to it by the host bridge.
fn is_on_the_bus(guest: &Guest<'_>, point: &Path, controller: Controller, part: &str) -> Result<()> {
    let said: Value = serde_json::from_str(&guest.peerfs(&["topology", "--json", &text(point)])?)?;
    let topology = &said["topology"];
    let resource = fs::read_to_string(controller.sysfs("resource"))?;
    let bar = resource.lines().nth(if part == "pmr" { 4 } else { 2 }).unwrap_or_default();
    let start = bar.split_whitespace().next().and_then(|start| u64::from_str_radix(start.strip_prefix("0x")?, 16).ok());
    let storage = &topology["storage"];
    ensure!(storage["address"] == controller.address, "the storage device is {storage}");
    ensure!(start.is_some() && storage["aperture_first"].as_u64() == start, "the aperture is at {storage}, its BAR {bar}");
    let other = if controller.address == A.address { B } else { A };
    let pairs = topology["pairs"].as_array().map_or(&[][..], Vec::as_slice);
    let pair = pairs.iter().find(|pair| pair["from"] == other.address && pair["to"] == controller.address);
    let refusal = pair.map(|pair| &pair["refusals"][0]).unwrap_or(&Value::Null);
    let hop = (&refusal["reason"], &refusal["hop"]);
    ensure!(hop == (&Value::from("NoPeerPath"), &Value::from("pci0000:00")), "from the other controller: {pair:?}");
    ensure!(refusal["remedy"].as_str().is_some_and(|remedy| remedy.contains("PCIe switch")), "no remedy: {refusal}");
    Ok(())
}

fn all_by_bar(guest: &Guest<'_>, path: &Path, contents: &[u8]) -> Result<()> {
    let read = map(guest, path, "server")?;
    ensure!(read["bytes_direct_bar"] == LENGTH && read["bytes_fallback"] == 0, "not all went by the BAR: {read}");
    ensure!(read["crc32c"] == checksum(contents), "the BAR shows something else: {read}");
    Ok(())
}

fn map(guest: &Guest<'_>, path: &Path, importer: &str) -> Result<Value> {
    let said = guest.peerfs(&["map", &text(path), "--importer", importer, "--checksum", "--json"])?;
    Ok(serde_json::from_str(&said)?)
}

fn checksum(contents: &[u8]) -> String {
    format!("{:08x}", crc32c::crc32c(contents))
}
