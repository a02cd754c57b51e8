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
