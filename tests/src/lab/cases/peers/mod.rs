//! A controller as importer: its DMA goes to and from the BAR of another.

mod copy;
mod gone;
mod lease;
mod revoked;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::Value;

use crate::lab::guest::{Controller, Guest, contents, text, until};

pub use copy::{copy, windows};
pub use gone::{removal, reset};
pub use lease::{drained, read_lease};
pub use revoked::{overwrite, truncate};

/// Of the controllers' namespaces, bytes.
const LBA: u64 = 512;
const MIB: u64 = 1 << 20;

/// A mounted volume whose blocks are in a BAR, and an importer.
struct Scene {
    point: PathBuf,
    importer: Controller,
}

impl Scene {
    /// A new volume on a part of a controller.
    fn new(guest: &mut Guest<'_>, storage: Controller, part: &str, importer: Controller) -> Result<Scene> {
        guest.bind(importer)?;
        Scene::on(guest, storage, part, importer)
    }

    /// The same, with the importer where it is.
    fn on(guest: &mut Guest<'_>, storage: Controller, part: &str, importer: Controller) -> Result<Scene> {
        guest.bind(storage)?;
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
    fn copy_out(&self, path: &Path, lba: u64) -> Vec<String> {
        self.arguments("--to-importer", path, lba)
    }

    /// `peerfs copy` into a file.
    fn copy_in(&self, path: &Path, lba: u64, length: u64) -> Vec<String> {
        let mut arguments = self.arguments("--from-importer", path, lba);
        arguments.extend(["--length".to_owned(), length.to_string()]);
        arguments
    }

    /// A synced file with the bytes of a seed.
    fn file(&self, name: &str, seed: u64, length: u64) -> Result<PathBuf> {
        let path = self.point.join(name);
        fs::write(&path, contents(seed, length as usize))?;
        File::open(&path)?.sync_all()?;
        Ok(path)
    }
}

/// Runs a copy that must succeed, and answers its report.
fn run(guest: &Guest<'_>, arguments: &[String]) -> Result<Value> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    Ok(serde_json::from_str(&guest.peerfs(&arguments)?)?)
}

fn refs(arguments: &[String]) -> Vec<&str> {
    arguments.iter().map(String::as_str).collect()
}

/// Until so many transfers are under way. On the slow medium each takes a quarter of a second.
fn until_in_flight(scene: &Scene, least: u64) -> Result<()> {
    until("transfers are under way", || {
        let info: Value = serde_json::from_slice(&fs::read(scene.point.join(".peerfs/info.json")).ok()?).ok()?;
        (info["importers"][0]["transfers_in_flight"].as_u64()? >= least).then_some(())
    })
}
