//! A device whose memory no process can be given and be taken back from: the BARs of an NVMe controller, persistent memory.
//!
//! Bare, only the importer in the server reaches it, and clients fall back. With a software CMB over it they have windows
//! of main memory, and everything that holds of an image file holds of it.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, ensure};
use peerfs_abi::Path;

use super::{ApertureSize, Backend, Capability, arguments, borrowed, machine_has};
use crate::kit::{Media, ScratchMount, peerfs, run};

/// How much of the device is used.
const VOLUME: &str = "64M";

/// A device, as mkfs takes it, whose content the cases destroy.
#[derive(Debug)]
pub struct DeviceBackend {
    name: String,
    device: String,
    own: Path,
    windows: Option<u64>,
    /// The volume on it was never mounted.
    fresh: AtomicBool,
}

impl DeviceBackend {
    /// `own` is the label of bytes that go by the device's own aperture; with `windows`, bytes, a software CMB of that size
    /// takes its place.
    pub fn new(device: &str, own: Path, windows: Option<u64>) -> DeviceBackend {
        let name = format!("{device}{}", if windows.is_some() { "+cmb" } else { "" });
        DeviceBackend { name, device: device.to_owned(), own, windows, fresh: AtomicBool::new(false) }
    }

    /// Makes a volume over what is on the device, which must be nothing that mkfs knows, or `force` is given. To be called
    /// before any case: they make theirs over whatever is there.
    ///
    /// # Errors
    /// What mkfs says.
    pub fn erase(&self, force: bool) -> Result<()> {
        let force = force.then_some("--force");
        run(Command::new(peerfs()).arg("mkfs").arg(&self.device).args(["--size", VOLUME]).args(force))?;
        self.fresh.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn options(&self, aperture: ApertureSize, options: &str) -> Vec<String> {
        let cmb = match (aperture, self.windows) {
            (ApertureSize::Absent, _) => Some("0".to_owned()),
            (ApertureSize::Mebibytes(size), _) => Some(format!("{size}M")),
            (ApertureSize::Usual, windows) => windows.map(|bytes| bytes.to_string()),
        };
        arguments(cmb, options)
    }

    /// A mount that has another aperture than this backend says would prove nothing.
    fn expect_aperture(&self, scratch: &ScratchMount) -> Result<()> {
        let aperture = &scratch.info()?["aperture"];
        ensure!(!aperture.is_null(), "{} has no aperture of its own: give --cmb SIZE", self.device);
        let (path, grants) = (self.direct_path().name(), self.has(Capability::Grants));
        ensure!(aperture["path"] == path && aperture["grantable"] == grants, "the aperture of {} is {aperture}", self.name);
        Ok(())
    }
}

impl Backend for DeviceBackend {
    fn name(&self) -> &str {
        &self.name
    }

    fn direct_path(&self) -> Path {
        if self.windows.is_some() { Path::DirectWindow } else { self.own }
    }

    fn has(&self, capability: Capability) -> bool {
        match capability {
            Capability::DmaBuf | Capability::KernelImporter => machine_has(capability),
            Capability::NoAperture | Capability::Persistent | Capability::Faults => true,
            Capability::SizedAperture | Capability::Grants => self.windows.is_some(),
            Capability::SideBySide | Capability::MediumFile => false,
        }
    }

    fn mount(&self, aperture: ApertureSize, options: &str) -> Result<ScratchMount> {
        let media = Media::Device(self.device.clone());
        let options = self.options(aperture, options);
        let scratch = match self.fresh.swap(false, Ordering::Relaxed) {
            true => ScratchMount::of(media, &borrowed(&options))?,
            false => ScratchMount::on(media, VOLUME, &borrowed(&options))?,
        };
        if aperture != ApertureSize::Absent {
            self.expect_aperture(&scratch)?;
        }
        Ok(scratch)
    }

    fn mount_again(&self, scratch: &mut ScratchMount, options: &str) -> Result<()> {
        scratch.mount(&borrowed(&self.options(ApertureSize::Usual, options)))
    }
}
